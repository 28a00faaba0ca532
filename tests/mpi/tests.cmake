switchyard_add_mpi_test(layout_equivalence_test 1 2 4 8 BACKGROUND 4)
switchyard_add_mpi_test(checkpoint_test 1 4 8)
switchyard_add_mpi_test(planning_test 1 4 8)
switchyard_add_mpi_test(training_test 1 2 4 8 BACKGROUND 2 4)
switchyard_add_mpi_test(communicator_test 1 2 4 8 BACKGROUND 2 4 8)
switchyard_add_mpi_test(link_turns_test BACKGROUND 2 4)
switchyard_add_mpi_test(rank_reduction_test 1 2 4)
switchyard_add_mpi_test(distributed_context_test 1 2 4 8)
switchyard_add_mpi_test(distributed_optimizer_test 1 2 4 8 BACKGROUND 4)
switchyard_add_mpi_test(expert_exchange_test 1 2 4 8 BACKGROUND 4)
switchyard_add_mpi_test(hash_training_test 1 2 4)
switchyard_add_mpi_test(decode_test 1 2 4)
switchyard_add_mpi_test(cached_logits_test 1 2)
switchyard_add_mpi_test(recall_evaluation_test 1 2 4)

# Checks how a job ends when a rank fails in one of these tests.
switchyard_add_mpi_test(failing_rank)
add_test(NAME failing_rank
         COMMAND ${SYSTEM_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/mpi/failing_rank_test.py
                 $<TARGET_FILE:failing_rank> ${MPIEXEC_EXECUTABLE})
set_tests_properties(failing_rank PROPERTIES TIMEOUT 300 PROCESSORS 2)
