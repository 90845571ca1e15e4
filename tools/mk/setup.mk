# setup.mk - `make setup [other goals]`: install the Debian packages that are missing, then the other goals in a second
# make, which is the first to look at what is installed.

OTHER_GOALS := $(filter-out setup,$(MAKECMDGOALS))

setup: ## install the Debian packages that are missing
	$(Q)tools/doctor install
	+$(Q)$(if $(OTHER_GOALS),$(MAKE) --no-print-directory $(OTHER_GOALS))

ifneq ($(OTHER_GOALS),)
$(OTHER_GOALS): setup
	@:
endif

.PHONY: setup $(OTHER_GOALS)
