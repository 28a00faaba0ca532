# What the tests of a folder need on a slow or busy machine; to be called when all are declared.
function(switchyard_be_patient)
  get_property(names DIRECTORY PROPERTY TESTS)
  foreach(name IN LISTS names)
    if(SWITCHYARD_SANITIZE)
      # Sanitizers slow programs down, so that limits of time are too short. Those within tests grow
      # by SWITCHYARD_TEST_PATIENCE, see CMakePresets.json.
      get_test_property(${name} TIMEOUT seconds)
      if(seconds)
        math(EXPR seconds "8 * ${seconds}")
        set_tests_properties(${name} PROPERTIES TIMEOUT ${seconds})
      endif()
    else()
      # Ranks of several tests share the cores (support/patient_yield.cpp). A sanitizer must be the
      # first library of its process, so it has no other before it.
      set_tests_properties(${name} PROPERTIES ENVIRONMENT_MODIFICATION
        "LD_PRELOAD=set:$<TARGET_FILE:switchyard_patient_yield>")
    endif()
  endforeach()
endfunction()
