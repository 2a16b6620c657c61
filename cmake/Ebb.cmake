# SPDX-License-Identifier: BSD-3-Clause
# Flags and the helpers that every CMakeLists.txt of the tree uses.
include(GNUInstallDirs)
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)

add_compile_options(-Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla
                    -Wpointer-arith -Wwrite-strings -Wundef -Wno-unused-parameter
                    -Wno-missing-field-initializers -fno-strict-aliasing -fno-common
                    -fstack-protector-strong)
add_compile_definitions(_GNU_SOURCE _FILE_OFFSET_BITS=64 EBB_VERSION="${PROJECT_VERSION}")
if(EBB_WERROR)
  add_compile_options(-Werror)
endif()
if(EBB_SANITIZE)
  add_compile_options(-fsanitize=${EBB_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${EBB_SANITIZE})
elseif(CMAKE_BUILD_TYPE MATCHES "Rel")
  add_compile_definitions(_FORTIFY_SOURCE=2)
endif()
if(EBB_FAULT_POINTS)
  add_compile_definitions(EBB_FAULT_POINTS)
endif()
include_directories(${CMAKE_SOURCE_DIR}/include)

# ebb_pkg(NAME MODULE): an imported target PkgConfig::NAME for a pkg-config module.
macro(ebb_pkg name module)
  if(NOT TARGET PkgConfig::${name})
    pkg_check_modules(${name} REQUIRED IMPORTED_TARGET GLOBAL ${module})
  endif()
endmacro()

# ebb_optional(OPTION WHAT MODULE...): turns a part of the build off, and says so, where one of its
# pkg-config modules is missing.
macro(ebb_optional option what)
  if(${option})
    foreach(module ${ARGN})
      pkg_check_modules(EBB_TRY_${module} QUIET ${module})
      if(NOT EBB_TRY_${module}_FOUND)
        message(WARNING "${what} is left out: no ${module} here (scripts/deps names the package)")
        set(${option} OFF)
      endif()
    endforeach()
  endif()
endmacro()

# ebb_module(NAME SOURCES ... DEPS ...): one static library ebb_NAME of src/NAME.
# Includes are written "NAME/file.h", from src/.
function(ebb_module name)
  cmake_parse_arguments(A "" "" "SOURCES;DEPS" ${ARGN})
  add_library(ebb_${name} STATIC ${A_SOURCES})
  target_include_directories(ebb_${name} PUBLIC ${CMAKE_SOURCE_DIR}/src)
  target_link_libraries(ebb_${name} PUBLIC ${A_DEPS} Threads::Threads)
endfunction()

# ebb_plugin(KIND NAME SOURCES ... DEPS ...): build/KIND/NAME.so. Plugins see only include/.
function(ebb_plugin kind name)
  cmake_parse_arguments(A "" "" "SOURCES;DEPS" ${ARGN})
  add_library(${kind}_${name} MODULE ${A_SOURCES})
  set_target_properties(${kind}_${name} PROPERTIES PREFIX "" OUTPUT_NAME ${name}
    LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/${kind})
  target_compile_options(${kind}_${name} PRIVATE -fvisibility=hidden)
  target_compile_definitions(${kind}_${name} PRIVATE EBB_PLUGIN)
  target_link_libraries(${kind}_${name} PRIVATE ${A_DEPS} Threads::Threads)
  install(TARGETS ${kind}_${name} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}/ebb/${kind})
endfunction()

# ebb_test(NAME SOURCES ... DEPS ... [LABELS ...] [TIMEOUT s] [ARGS ...]):
# a test program; exit status 77 means "skipped, and the output says where else it runs".
# Labels say which stages of scripts/check run it (docs/testing.md); without one it is "unit".
function(ebb_test name)
  cmake_parse_arguments(A "" "TIMEOUT" "SOURCES;DEPS;LABELS;ARGS" ${ARGN})
  add_executable(${name} ${A_SOURCES})
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR}/src ${CMAKE_SOURCE_DIR}/tests)
  target_link_libraries(${name} PRIVATE ${A_DEPS} Threads::Threads)
  add_test(NAME ${name} COMMAND ${name} ${A_ARGS})
  if(NOT A_LABELS)
    set(A_LABELS unit)
  endif()
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 60)
  endif()
  set_tests_properties(${name} PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT ${A_TIMEOUT}
    LABELS "${A_LABELS}" ENVIRONMENT "EBB_BUILD=${CMAKE_BINARY_DIR}")
endfunction()

# ebb_script_test(NAME SCRIPT [LABELS ...] [TIMEOUT s] [ARGS ...]): the same for a script;
# without a label it is "integration".
function(ebb_script_test name script)
  cmake_parse_arguments(A "" "TIMEOUT" "LABELS;ARGS" ${ARGN})
  add_test(NAME ${name} COMMAND ${script} ${A_ARGS})
  if(NOT A_LABELS)
    set(A_LABELS integration)
  endif()
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 120)
  endif()
  set_tests_properties(${name} PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT ${A_TIMEOUT}
    LABELS "${A_LABELS}"
    ENVIRONMENT "EBB_BUILD=${CMAKE_BINARY_DIR};EBB_SOURCE=${CMAKE_SOURCE_DIR}")
endfunction()

enable_testing()
