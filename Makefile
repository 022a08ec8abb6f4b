# make reproduce   the quick preset end to end on two CPU cores: clips, features, probes, figures
# make test        style, types, layers of imports and the whole test suite, with a share of the faults
# make faults      every fault of tests/faults: damaged files, kills, full disks, odd machines; some minutes
# make slow        the slow tests of the rest
# Both make .venv and install requirements.txt into it on first use.
# make lint        formats the code, then checks style, types and layers
# make benchmarks  every step beside what a user would otherwise do, into docs/benchmarks.md; some ten minutes
# make kubric      an environment of its own for step1_generate.py --backend kubric (1.7 GB)
# make reproduce-paper [MODEL=large] [WEIGHTS=FILE] [DEVICE=cuda:0]   the paper preset through Kubric, then every
#                  later step; the IntPhys figures too if its dev split is at artifacts/intphys/dev

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
PARALLEL := --numprocesses $(shell nproc 2>/dev/null || echo 2) --maxprocesses 8 --dist loadfile  # a file's tests share what they make

.PHONY: help reproduce reproduce-paper reproduce-intphys reproduce-mechanisms kubric test faults slow lint checks types layers \
	benchmarks clean

help:
	@sed -n '/^# /!q; s/^# //p' Makefile

$(INSTALLED): requirements.txt
	@echo "Installing requirements.txt into $(VENV) (PyTorch is large: some minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

# The quick preset keeps to a folder of its own, so that it never meets the paper preset's clips. The IntPhys
# stand-in is small, and its attentive probes are shallow and short: Figure 8 proper needs a GPU.
QUICK := PEZ_ARTIFACTS_DIR=artifacts/quick
FEATURES := artifacts/quick/features
MATCHED := artifacts/quick/data_matched
ENCODER := --model tiny --device cpu
PROBE := $(QUICK) $(RUN) step3_probe.py run --feature-root $(FEATURES)/tiny --solver trainable \
	--residual-capture resid_post --preprocessing resize --device cpu
CONTROLS := --control shuffled_labels random_weights pixels position static_last --control-seeds 1
MOTION := $(QUICK) $(RUN) step3_probe.py run --feature-root $(FEATURES)/matched --probe-set motion --solver ridge \
	--protocol nested --residual-capture resid_post --preprocessing resize --device cpu --unique \
	--control shuffled_labels random_weights pixels optical_flow position static_last --control-seeds 1
MECHANISMS := $(QUICK) $(RUN) step4_mechanisms.py
RUN_NAME := --run-name mechanisms_quick
INTPHYS := $(ENCODER) --intphys-root artifacts/quick/intphys_mini/dev --capture resid_pre --transform resize \
	--n-frames-sample 16 --feature-root $(FEATURES)/intphys --reuse-features

reproduce: $(INSTALLED)
	@echo "== Step 1: render the quick preset, and a small stand-in for IntPhys"
	@$(QUICK) $(RUN) step1_generate.py --preset quick
	@$(QUICK) $(RUN) step1_generate.py --preset quick --dataset velocity --start-positions matched --output-root $(MATCHED)
	@$(QUICK) $(RUN) step1_generate.py --dataset intphys_mini --scenes-per-block 4
	@echo "== Step 2: features of every layer, all poolings in one pass; the controls"
	@$(QUICK) $(RUN) step2_extract.py $(ENCODER) --capture resid_post --transform resize \
		--pooling temporal_last temporal_last_patch mean time_mean_patch --control random_weights pixels static_last \
		--control-seeds 1 --output-root $(FEATURES)/tiny
	@$(QUICK) $(RUN) step2_extract.py $(ENCODER) --capture resid_post --transform resize --data-root $(MATCHED) \
		--dataset velocity --pooling mean temporal_last --control random_weights pixels optical_flow static_last \
		--control-seeds 1 --output-root $(FEATURES)/matched
	@echo "== Step 3: probes of Figure 2(c) and 2(b)"
	@$(PROBE) --run-name fig2c_quick --probe-set fig2c --pooling temporal_last \
		--norm-mode zscore --grouping direction_spatial_sector --direction-target angle $(CONTROLS)
	@$(PROBE) --run-name fig2b_velocity_quick --probe-set fig2b_velocity_xy --pooling temporal_last_patch \
		--norm-mode center --grouping magnitude_spatial_sector --direction-target vxy $(CONTROLS)
	@$(PROBE) --run-name fig2b_acceleration_quick --probe-set fig2b_acceleration_xy --pooling temporal_last \
		--norm-mode center --grouping magnitude --direction-target vxy $(CONTROLS)
	@$(QUICK) $(RUN) step3_probe.py audit --feature-root $(FEATURES)/tiny
	@echo "== Step 3: motion without place, the mean of all tokens beside the last tubelet's"
	@$(MOTION) --run-name motion_mean_quick --pooling mean
	@$(MOTION) --run-name motion_last_quick --pooling temporal_last
	@echo "== IntPhys stand-in: linear and attentive probes"
	@$(QUICK) $(RUN) step_intphys_probe.py $(INTPHYS) --run-name figure6_intphys_tiny_linear_quick \
		--selection-metric relative_accuracy --control shuffled_labels random_weights pixels static_last \
		--control-seeds 1 --store-pooling temporal_last_patch
	@$(QUICK) $(RUN) step_intphys_attentive.py $(INTPHYS) --run-name figure8_intphys_tiny_attentive_quick \
		--patch-pool temporal_last_patch --layers 0 4 8 11 --num-probe-blocks 2 --num-heads 3 --num-epochs 2 \
		--control shuffled_labels
	@echo "== Mechanisms: attention, probe sequences, subspaces, edits, places; an ablation of a few clips"
	@$(MECHANISMS) attention $(RUN_NAME) $(ENCODER) --max-clips 12 --control random_weights --control-seeds 1
	@$(MECHANISMS) sequence $(RUN_NAME) --feature-root $(FEATURES)/tiny --null-draws 100 --control-seeds 1 \
		--control random_weights shuffled_labels \
		--intphys-root $(FEATURES)/intphys
	@$(MECHANISMS) overlap $(RUN_NAME)
	@$(MECHANISMS) steer $(RUN_NAME) --feature-root $(FEATURES)/tiny --control random_weights --control-seeds 1 \
		--judge split paper own --null-draws 50 --folds 3
	@$(MECHANISMS) patches $(RUN_NAME) --feature-root $(FEATURES)/tiny --control random_weights --control-seeds 1 \
		--layers 0 3 4 8
	@$(MECHANISMS) ablate $(RUN_NAME) $(ENCODER) --max-clips 24 --conditions union_s3_t1 random_s3_t1
	@echo "== Figures and report"
	@$(QUICK) $(RUN) plot_figures.py --reference

# Kubric pins what it cannot resolve, so it comes without its dependencies (requirements-kubric.txt has them).
KUBRIC := .venv-kubric
KUBRIC_INSTALLED := $(KUBRIC)/.installed

kubric: $(KUBRIC_INSTALLED)

$(KUBRIC_INSTALLED): requirements-kubric.txt
	@echo "Installing requirements-kubric.txt into $(KUBRIC) (Blender is large: a minute or more, once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "Blender 4.5 needs Python 3.11: make kubric PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(KUBRIC)
	$(KUBRIC)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-kubric.txt
	$(KUBRIC)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps kubric==0.1.1
	PYTHONPATH=. $(KUBRIC)/bin/python -m pez.stimuli.kubric_probe
	@touch $@

MODEL ?= large
WEIGHTS ?=
DEVICE ?= $(if $(shell command -v nvidia-smi),cuda:0,cpu)
PAPER_ENCODER := --model $(MODEL) $(if $(WEIGHTS),--weights $(WEIGHTS)) --device $(DEVICE)
ARTIFACTS := $(or $(PEZ_ARTIFACTS_DIR),artifacts)
PAPER_FEATURES := $(ARTIFACTS)/features/$(MODEL)_resid_post_resize
PAPER_PROBE := $(RUN) step3_probe.py run --feature-root $(PAPER_FEATURES) --solver trainable \
	--residual-capture resid_post --preprocessing resize --device $(DEVICE)

PAPER_CONTROLS := --control shuffled_labels random_weights pixels position static_last

reproduce-paper: $(INSTALLED) $(KUBRIC_INSTALLED)
	@echo "== Step 1: render the paper preset with Kubric"
	@$(RUN) step1_generate.py --backend kubric
	@echo "== Step 2: features of every layer, both poolings in one pass"
	@$(RUN) step2_extract.py $(PAPER_ENCODER) --capture resid_post --transform resize \
		--pooling temporal_last temporal_last_patch mean time_mean_patch \
		--control random_weights pixels static_last shuffled_frames --output-root $(PAPER_FEATURES)
	@echo "== Step 3: probes of Figure 2(c) and 2(b)"
	@$(PAPER_PROBE) --run-name fig2c_iter11_residpost_tlast_dirsector_angle --probe-set fig2c --pooling temporal_last \
		--norm-mode zscore --grouping direction_spatial_sector --direction-target angle $(PAPER_CONTROLS)
	@$(PAPER_PROBE) --run-name fig2b_iter23_velocity_residpost_tlastpatch_magsector_center --probe-set fig2b_velocity_xy \
		--pooling temporal_last_patch --norm-mode center --grouping magnitude_spatial_sector --direction-target vxy \
		$(PAPER_CONTROLS)
	@$(PAPER_PROBE) --run-name fig2b_iter16_accel_residpost_tlast_magnitude_center --probe-set fig2b_acceleration_xy \
		--pooling temporal_last --norm-mode center --grouping magnitude --direction-target vxy $(PAPER_CONTROLS)
	@$(RUN) step3_probe.py audit --feature-root $(PAPER_FEATURES)
	@echo "== IntPhys: Figures 1, 6 and 8"
	@if [ -d $(ARTIFACTS)/intphys/dev ]; then $(MAKE) --no-print-directory reproduce-intphys; \
		else echo "skipped: no IntPhys dev split at $(ARTIFACTS)/intphys/dev"; fi
	@$(MAKE) --no-print-directory reproduce-mechanisms
	@echo "== Figures"
	@$(RUN) plot_figures.py --reference

MECHANISM_STEP := $(RUN) step4_mechanisms.py
MECHANISM_RUN := --run-name mechanisms_$(MODEL)
MECHANISM_FEATURES := $(MECHANISM_RUN) --feature-root $(PAPER_FEATURES)
INTPHYS_FEATURES := $(firstword $(wildcard $(ARTIFACTS)/features/intphys_$(MODEL)_*_resid_pre_resize_mean))

reproduce-mechanisms: $(INSTALLED)
	@echo "== Mechanisms: Figures 3, 4, 12, 18 to 24, Tables 2 to 4"
	@$(MECHANISM_STEP) attention $(MECHANISM_RUN) $(PAPER_ENCODER) --control random_weights static_last
	@$(MECHANISM_STEP) sequence $(MECHANISM_FEATURES) --probe ridge adam --norms zscore center whiten shear \
		--control random_weights shuffled_labels $(if $(INTPHYS_FEATURES),--intphys-root $(INTPHYS_FEATURES))
	@$(MECHANISM_STEP) overlap $(MECHANISM_RUN) --control random_weights
	@$(MECHANISM_STEP) steer $(MECHANISM_FEATURES) --control random_weights shuffled_labels --downstream $(PAPER_ENCODER)
	@$(MECHANISM_STEP) patches $(MECHANISM_FEATURES) --control random_weights static_last shuffled_labels
	@$(MECHANISM_STEP) ablate $(MECHANISM_RUN) $(PAPER_ENCODER) --bands zone early late --control random_weights \
		$(if $(wildcard $(ARTIFACTS)/intphys/dev),--benchmark-root $(ARTIFACTS)/intphys/dev)
	@$(MECHANISM_STEP) tuning $(MECHANISM_RUN) $(PAPER_ENCODER) --control random_weights
	@$(MECHANISM_STEP) tasks $(MECHANISM_FEATURES) $(PAPER_ENCODER) --control random_weights \
		--task shuffled speed direction appearance count
	@$(MECHANISM_STEP) coordinates $(MECHANISM_FEATURES) --control random_weights static_last

reproduce-intphys: $(INSTALLED)
	@$(RUN) step_intphys_probe.py $(PAPER_ENCODER) --capture resid_pre --transform resize --n-frames-sample 16 \
		--selection-metric relative_accuracy --reuse-features \
		--control shuffled_labels random_weights pixels static_last shuffled_frames \
		--run-name figure6_intphys_$(MODEL)_linear_full
	@$(RUN) step_intphys_attentive.py $(PAPER_ENCODER) --capture resid_pre --transform resize --n-frames-sample 16 \
		--patch-pool temporal_last_patch --reuse-features --control shuffled_labels random_weights static_last \
		--run-name figure8_intphys_$(MODEL)_attentive

test: checks
	@$(RUN) -m pytest $(PARALLEL)

faults: $(INSTALLED)
	@FUZZ_EXAMPLES=200 $(RUN) -m pytest $(PARALLEL) --dist load tests/faults -m "slow or not slow"

slow: $(INSTALLED)
	@$(RUN) -m pytest $(PARALLEL) --ignore tests/faults -m slow

lint: $(INSTALLED)
	@$(RUN) -m ruff format .
	@$(MAKE) --no-print-directory checks

checks: types layers $(INSTALLED)
	@$(RUN) -m ruff check .

# strict static types of the files that pyproject.toml names
types: $(INSTALLED)
	@$(RUN) -m mypy

# who may import whom: the contracts of pyproject.toml
layers: $(INSTALLED)
	@$(VENV)/bin/lint-imports --no-logo

benchmarks: $(INSTALLED)
	@$(RUN) -m benchmarks --write docs/benchmarks.md
	@$(RUN) -m benchmarks.scale --write docs/scale.md

clean:
	rm -rf artifacts/quick
