# Sets `out` to the GPUs from Turing to Blackwell among those that nvcc lists, as CMake wants them.
#
# All have machine code. PTX of the newest serves GPUs that come after it, and PTX of the oldest those in between: their
# driver compiles it.
function(pnf_architectures listed out)
  set(found)
  foreach(architecture IN ITEMS 75 80 86 89 90 100 120)
    if(listed MATCHES "compute_${architecture}([^0-9]|$)")
      list(APPEND found ${architecture}-real)
    endif()
  endforeach()
  if(found)
    list(TRANSFORM found REPLACE "-real$" "" AT 0 -1)
  endif()
  set(${out} ${found} PARENT_SCOPE)
endfunction()
