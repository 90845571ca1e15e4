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

CC := gcc
SANITIZE ?=
CFLAGS ?= -O2 -g
WARNINGS := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wwrite-strings -Wformat=2 -Wno-format-nonliteral
OBJ := bin/.build/$(if $(SANITIZE),sanitize,plain)
ALL_CFLAGS := -std=gnu11 -D_GNU_SOURCE $(CFLAGS) $(WARNINGS) $(if $(SANITIZE),-fsanitize=address$(comma)undefined -fno-omit-frame-pointer) -Itools/lib -Itools/judge
comma := ,

# ---- programs ----
PROGRAMS := $(patsubst tools/%.c,%,$(wildcard tools/km-*.c))
LIB_SOURCES := $(wildcard tools/lib/*.c)
JUDGE_SOURCES := $(filter-out tools/judge/runner_%.c,$(wildcard tools/judge/*.c))
SCHEMAS := $(wildcard tools/schema/*.json)
LIBS := -lcjson -lcrypto -lm

all: $(PROGRAMS:%=bin/%) bin/km-runner-cpu ## build the programs

$(OBJ)/%.o: tools/%.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) -MMD -MP -c $< -o $@

# All schemas as one table, linked into every program.
$(OBJ)/schema_data.S: $(SCHEMAS) Makefile
	@mkdir -p $(@D)
	$(Q){ echo '.section .rodata'; \
	for s in $(SCHEMAS); do k=$$(basename $$s .json); \
	  printf 'name_%s: .asciz "%s"\ntext_%s: .incbin "%s"\nend_%s: .byte 0\n' $$k $$k $$k $$s $$k; done; \
	echo '.section .data.rel.ro,"aw"'; echo '.balign 8'; echo '.globl schema_texts'; echo 'schema_texts:'; \
	for s in $(SCHEMAS); do k=$$(basename $$s .json); printf '.quad name_%s, text_%s, end_%s\n' $$k $$k $$k; done; \
	echo '.quad 0, 0, 0'; echo '.section .note.GNU-stack,"",@progbits'; } > $@

$(OBJ)/schema_data.o: $(OBJ)/schema_data.S
	$(Q)$(CC) -c $< -o $@

$(OBJ)/libkm.a: $(LIB_SOURCES:tools/%.c=$(OBJ)/%.o) $(OBJ)/schema_data.o
	$(Q)rm -f $@ && ar rcs $@ $^

$(OBJ)/libjudge.a: $(JUDGE_SOURCES:tools/%.c=$(OBJ)/%.o)
	$(Q)rm -f $@ && ar rcs $@ $^

bin/km-%: $(OBJ)/km-%.o $(OBJ)/libjudge.a $(OBJ)/libkm.a
	$(Q)$(CC) $(ALL_CFLAGS) $^ -o $@ $(LIBS) $(if $(filter llm,$*),-lcurl) -ldl

bin/km-runner-cpu: $(OBJ)/judge/runner_cpu.o
	$(Q)$(CC) $(ALL_CFLAGS) -Wl,-z,relro,-z,now $^ -o $@ -ldl -lm

-include $(wildcard $(OBJ)/*.d $(OBJ)/*/*.d)
.PRECIOUS: $(OBJ)/%.o

clean: ## remove what was built
	$(Q)rm -rf bin/.build bin/km-*

.PHONY: all clean
