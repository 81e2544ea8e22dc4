"""Make the library of SEDs that ships with csstdask, from DESI's templates and ATLAS9 models.

python benchmarks/sed_library.py desi_templates.npz ck04.npz csstdask/mock/seds/desi-atlas9.npz
"""

from __future__ import annotations

import sys

import numpy as np

from csstdask.mock.sed_library import make_library

if __name__ == "__main__":
    templates, atlas, to = sys.argv[1:]
    np.savez_compressed(to, **make_library(templates, atlas))
