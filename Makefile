# kpoll: every command that a user or the CI needs. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILT := $(VENV)/.built
TOOLS := $(VENV)/.tools
C_FILES := $(wildcard kernel/c/*.[ch] vhost/c/*.[ch] nvme/c/*.[ch] backend/c/*.[ch])
C_STYLED := $(C_FILES) $(wildcard tests/*/*.[ch])
PACKAGES := kpoll.kernel kpoll.nvme kpoll.vhost kpoll.backend
C_WARNINGS := -std=gnu11 -D_GNU_SOURCE -I. -Wall -Wextra -Werror

# What a fuzzing run of `make fuzz` gets, for each harness; CI gives a minute.
FUZZ_SECONDS ?= 1800
# make demo ACCEL=kvm where KVM works for ordinary guests
ACCEL ?= tcg
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help build demo demo-kernel check check-kernel check-kernel-debug lint fmt bench fuzz clean

help: ## Show what each command does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: $(BUILT) ## Install kpoll into .venv (leaves .venv/bin/kpoll); installs from apt what that needs

# An extension is not rebuilt for a changed header alone: what was built goes first.
$(BUILT): pyproject.toml setup.py vhost/core_build.py $(C_FILES) $(wildcard */c/*.cdef kernel/uapi/*.h) .ci/setup
	@.ci/setup build
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@rm -rf build vhost/_core.*.so
	@echo "build: compiling kpoll into $(VENV)"
	@KPOLL_WERROR=1 $(BIN)/pip install --quiet --editable .
	@touch $@

# What checks, but does not run, kpoll: the extras "dev" and "fuzz" of pyproject.toml, without building kpoll once more.
EXTRAS := import tomllib; e = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	print(*e["dev"], *e["fuzz"], sep="\n")
$(TOOLS): pyproject.toml $(BUILT)
	@echo "tools: installing linters and test libraries into $(VENV)"
	@$(BIN)/python -c '$(EXTRAS)' > $@.txt
	@$(BIN)/pip install --quiet --requirement $@.txt
	@touch $@

demo: build ## Show kpoll at work: a guest fills, trims and keeps a disk, and talks over a card (ACCEL=kvm to use KVM)
	@.ci/setup vm
	@$(BIN)/python -m tests.vm.demo --accel $(ACCEL)

demo-kernel: build ## The demo's last act alone, where the kernel polls for kpoll (first builds that kernel: 7 minutes)
	@.ci/setup kernel
	@kernel/vm/build patched >/dev/null
	@$(BIN)/python -m tests.kernel.demo_kernel

# What doesn't mind company runs on all CPUs, a file on each, long ones first; what measures comes after it, alone.
SIDE_BY_SIDE := tests/kernel/test_story.py tests/kernel/test_fabrics_faults.py tests/fuzz tests/vm \
	tests/kernel/test_vm_boots.py tests/kernel/test_nvme_disks.py tests/kernel/test_nvme.py tests/kernel/test_fabrics.py \
	tests/cli tests/c tests/unit tests/wire
check: lint ## Lint, types and all tests, check-kernel's too: what CI runs
	$(BIN)/pytest -rs --durations=8 --numprocesses auto --dist loadfile $(PYTEST_ARGS) $(SIDE_BY_SIDE); first=$$?; \
	$(BIN)/pytest -rs --durations=8 $(SIDE_BY_SIDE:%=--ignore=%) $(PYTEST_ARGS) && exit $$first

check-kernel: build $(TOOLS) ## The patched kernel and the module, in the test VM, alone (make check has this too; first builds the kernel)
	@.ci/setup kernel
	$(BIN)/pytest -rs --durations=8 $(PYTEST_ARGS) tests/kernel

check-kernel-debug: build $(TOOLS) ## The same under KASAN and lockdep, selftests under KCSAN: 20 minutes, not in CI
	@.ci/setup kernel
	KPOLL_TEST_KERNEL=debug $(BIN)/pytest -rs --durations=8 $(PYTEST_ARGS) tests/kernel
	KPOLL_TEST_KERNEL=kcsan $(BIN)/pytest -rs --durations=8 $(PYTEST_ARGS) tests/kernel/test_selftests.py

lint: build $(TOOLS) ## Style, types and compiler warnings, without the tests
	@.ci/setup check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(PACKAGES:%=-p %)
	$(BIN)/mypy tests
	clang-format --dry-run -Werror $(C_STYLED)
	clang $(C_WARNINGS) -fsyntax-only $(filter %.c,$(C_FILES))

fmt: build $(TOOLS) ## Put Python and C into the project's style
	@.ci/setup check
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	clang-format -i $(C_STYLED)

bench: build $(TOOLS) ## Compare with qemu-storage-daemon and testpmd: tables and a picture (needs root: zram, a network of its own)
	@.ci/setup check
	$(BIN)/python -m kpoll.backend.bench.compare
	$(BIN)/python -m kpoll.backend.bench.compare_net

fuzz: build $(TOOLS) ## Fuzz for FUZZ_SECONDS (half an hour) per harness; CI gives each a minute
	@.ci/setup check
	KPOLL_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/pytest -rs -s tests/fuzz

clean: ## Remove what was built (not the cache of kernels and images in ~/.cache/kpoll)
	rm -rf $(VENV) build dist *.egg-info vhost/_core.c vhost/_core.*.so
