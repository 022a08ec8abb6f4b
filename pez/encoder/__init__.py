"""The frozen video encoder: loading, preprocessing, capture, pooling, extraction."""

import sys

if sys.flags.optimize > 1:  # transformers reads docstrings as it is imported, and would end with a traceback
    print(
        "error: python -OO (PYTHONOPTIMIZE=2) takes away the docstrings that transformers needs: "
        "use python -O or neither",
        file=sys.stderr,
    )
    sys.exit(2)
