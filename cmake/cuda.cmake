# Whether to build the CUDA kernels, and for which GPUs: sets MEGALODON_CUDA and enables the language.
#   ON    for CMAKE_CUDA_ARCHITECTURES, by default all that releases carry
#   AUTO  for the GPUs of this machine; where there is none, or no nvcc, nobody waits for nvcc
#   OFF   not at all
set(MEGALODON_CORE_CUDA AUTO CACHE STRING "CUDA kernels: ON, OFF or AUTO (for the GPUs of this machine)")
set_property(CACHE MEGALODON_CORE_CUDA PROPERTY STRINGS AUTO ON OFF)
set(MEGALODON_CUDA OFF)

# "9.0" is 90a: the features of that chip alone, which the kernels for it may use.
function(find_gpus architectures)
  set(found "")
  find_program(NVIDIA_SMI nvidia-smi)
  if(NVIDIA_SMI)
    execute_process(COMMAND ${NVIDIA_SMI} --query-gpu=compute_cap --format=csv,noheader
                    OUTPUT_VARIABLE capabilities RESULT_VARIABLE status ERROR_QUIET
                    OUTPUT_STRIP_TRAILING_WHITESPACE)
    if(status EQUAL 0 AND capabilities MATCHES "^[0-9]")
      string(REPLACE "\n" ";" found "${capabilities}")
      list(TRANSFORM found REPLACE "[^0-9]" "")
      list(REMOVE_DUPLICATES found)
      list(TRANSFORM found REPLACE "^90$" "90a")
      list(TRANSFORM found APPEND "-real")
    endif()
  endif()
  set(${architectures} "${found}" PARENT_SCOPE)
endfunction()

if(MEGALODON_CORE_CUDA STREQUAL "AUTO")
  include(CheckLanguage)
  find_gpus(gpus)
  if(gpus)
    check_language(CUDA)
  endif()
  if(gpus AND CMAKE_CUDA_COMPILER)
    set(MEGALODON_CUDA ON)
    set(CMAKE_CUDA_ARCHITECTURES "${gpus}" CACHE STRING "GPUs to build for")
  endif()
elseif(MEGALODON_CORE_CUDA)
  set(MEGALODON_CUDA ON)
  set(CMAKE_CUDA_ARCHITECTURES "80-real;90a-real;100-real;120" CACHE STRING "GPUs to build for")
endif()
if(MEGALODON_CUDA)
  enable_language(CUDA)
  message(STATUS "CUDA kernels: for ${CMAKE_CUDA_ARCHITECTURES}")
else()
  message(STATUS "CUDA kernels: not built (MEGALODON_CORE_CUDA=${MEGALODON_CORE_CUDA})")
endif()
