switchyard_add_mpi_test(layout_equivalence_test 1 2 4 8)
