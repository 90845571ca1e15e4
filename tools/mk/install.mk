# install.mk - programs and man pages to PREFIX, and what else is not build, run or check.

PREFIX ?= /usr/local
DESTDIR ?=
MAN_PAGES = $(wildcard tools/man/*.1 tools/man/*.5)

install: all ## copy programs and man pages to PREFIX=/usr/local
	$(Q)install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/man/man5
	$(Q)install $(PROGRAMS:%=$(BIN)/%) $(RUNNERS) $(DESTDIR)$(PREFIX)/bin
	$(Q)for page in $(MAN_PAGES); do install -m 644 "$$page" $(DESTDIR)$(PREFIX)/share/man/man$${page##*.}; done

BUNDLE ?= bin/kernel-make.tar.gz
bundle: all ## an archive for a GPU host without -dev packages: BUNDLE=bin/kernel-make.tar.gz
	$(Q)tools/bundle $(BIN) $(BUNDLE)

doctor: ## what this machine lacks, and how to get it
	$(Q)tools/doctor

help: ## this list
	@echo "kernel-make: search for fast kernels with a language model. Targets:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile tools/mk/*.mk | sort | awk -F '\t' '{ printf "%-16s%s\n", $$1, $$2 }'
	@echo "Variables of a run: tools/run -h. V=1 shows commands, make -n lists the steps."

.PHONY: install bundle doctor help
