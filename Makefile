# `make demo` and `make test` do all of their own set-up on a fresh Debian 12 machine (as root or
# with sudo); packages and models that are there are not fetched again.
.PHONY: all demo test test-arm64 acceptance goldens clean

PYTHON := $(firstword $(wildcard /usr/bin/python3) python3)

all: build/build.ninja
	ninja -C build microtome

build/build.ninja:
	@tools/setup.sh tools/packages.txt
	cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Release

demo:
	@tools/setup.sh tools/packages.txt
	@cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Release >/dev/null
	@ninja -C build microtome
	@$(PYTHON) tools/fetch_models.py smol
	@tools/demo.sh

# SANITIZE=1 adds the fast tests under sanitizers, FUZZ=1 the fuzz targets, CI=1 both (minutes more).
test:
	@tools/setup.sh tools/packages.txt tools/packages-test.txt \
	  $(if $(CI)$(FUZZ),tools/packages-fuzz.txt)
	@$(PYTHON) tools/fetch_models.py smol
	@tools/test.sh

# The NEON kernels and the formats on an emulated arm64 processor (adds that architecture to apt).
test-arm64:
	@tools/test_arm64.sh

# Other people's engines judge our files: hours, gigabytes. See tests/acceptance/README.md.
acceptance: models/judges/.ready
	@tools/setup.sh tools/packages.txt
	@cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Release >/dev/null
	@ninja -C build microtome
	@$(PYTHON) tools/fetch_models.py smol gemma qwen
	nice models/judges/bin/python tests/acceptance/acceptance.py $(ARGS)

models/judges/.ready: tests/acceptance/requirements.txt
	@tools/setup.sh tools/packages-acceptance.txt
	$(PYTHON) -m venv models/judges
	models/judges/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# The files of tests/golden that an independent implementation gives.
goldens: models/judges/.ready
	models/judges/bin/python tools/goldens/make_tiny_models.py

clean:
	rm -rf build build-sanitize build-fuzz build-arm64 build*.log
