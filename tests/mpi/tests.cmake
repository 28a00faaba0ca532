switchyard_add_mpi_test(layout_equivalence_test 1 2 4 8)
switchyard_add_mpi_test(checkpoint_test 1 4 8)
switchyard_add_mpi_test(training_test 1 2 4 8)
switchyard_add_mpi_test(planning_test 1 4 8)
