# kernel-make: programs in bin/, and the search as Make rules. `make help` lists the targets.

ifeq ($(filter undefine,$(value .FEATURES)),)
$(error kernel-make needs GNU Make 4.3 or later)
endif

MAKEFLAGS += -rR --warn-undefined-variables
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.SUFFIXES:
.DEFAULT_GOAL := all

V ?= 0
Q := $(if $(filter 1,$(V)),,@)
comma := ,

CC := gcc
SANITIZE ?=
CFLAGS ?= -O2 -g
WARNINGS := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wwrite-strings -Wformat=2 -Wno-format-nonliteral
WERROR ?=
FLAVOUR := $(if $(SANITIZE),sanitize,plain)
OBJ := bin/.build/$(FLAVOUR)
BIN := $(if $(SANITIZE),$(OBJ)/bin,bin)
SANITIZERS := $(if $(SANITIZE),-fsanitize=address$(comma)undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
ALL_CFLAGS := -std=gnu11 -D_GNU_SOURCE $(CFLAGS) $(WARNINGS) $(SANITIZERS) -iquote tools/lib -iquote tools/judge

# With setup among the goals, the others run in a second make once the packages are there.
ifneq ($(filter setup,$(MAKECMDGOALS)),)
include tools/mk/setup.mk
else
include tools/mk/programs.mk
include tools/mk/run.mk
include tools/mk/check.mk
include tools/mk/install.mk
ifneq ($(filter rounds verdicts $(S)/%,$(MAKECMDGOALS)),)
include tools/mk/rounds.mk
endif
endif
