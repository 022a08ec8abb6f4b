# make reproduce   the quick preset end to end on two CPU cores: clips, features, probes, figures
# make test        the whole test suite
# Both make .venv and install requirements.txt into it on first use.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: help reproduce test lint benchmarks clean

help:
	@sed -n 's/^# //p' Makefile

$(INSTALLED): requirements.txt
	@echo "Installing requirements.txt into $(VENV) (PyTorch is large: some minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

# The quick preset keeps to a folder of its own, so that it never meets the paper preset's clips.
QUICK := PEZ_ARTIFACTS_DIR=artifacts/quick
FEATURES := artifacts/quick/features
ENCODER := --model tiny --weights random --device cpu
PROBE := $(QUICK) $(RUN) step3_probe.py run --feature-root $(FEATURES)/tiny_random --solver trainable \
	--residual-capture resid_post --preprocessing resize --device cpu

reproduce: $(INSTALLED)
	@echo "== Step 1: render the quick preset"
	@$(QUICK) $(RUN) step1_generate.py --preset quick
	@echo "== Step 2: features of every layer, all poolings in one pass"
	@$(QUICK) $(RUN) step2_extract.py $(ENCODER) --capture resid_post --transform resize \
		--pooling temporal_last temporal_last_patch --output-root $(FEATURES)/tiny_random
	@echo "== Step 3: probes of Figure 2(c) and 2(b)"
	@$(PROBE) --run-name fig2c_quick --probe-set fig2c --pooling temporal_last \
		--norm-mode zscore --grouping direction_spatial_sector --direction-target angle
	@$(PROBE) --run-name fig2b_velocity_quick --probe-set fig2b_velocity_xy --pooling temporal_last_patch \
		--norm-mode center --grouping magnitude_spatial_sector --direction-target vxy
	@$(PROBE) --run-name fig2b_acceleration_quick --probe-set fig2b_acceleration_xy --pooling temporal_last \
		--norm-mode center --grouping magnitude --direction-target vxy
	@echo "== Figures"
	@$(QUICK) $(RUN) plot_figures.py --reference

test: $(INSTALLED)
	@$(RUN) -m ruff check .
	@$(RUN) -m pytest

lint: $(INSTALLED)
	@$(RUN) -m ruff format .
	@$(RUN) -m ruff check .

clean:
	rm -rf artifacts/quick
