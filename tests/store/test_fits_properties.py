"""Any header and any layout: what is read is right, and what is not read is refused by name."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csstdask.core.errors import InputError
from csstdask.instrument.registry import parse_instrument
from csstdask.store.fits_planes import read_flag, read_sci, read_weight
from csstdask.store.fits_scan import scan_file

QUICK = settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
SHAPE = (3, 4)
CAMERA = parse_instrument(
    """
name = "any"
units = "electron"
[electronics]
gain = 2.0
read_noise = 3.0
[flags]
bits = { bad = 1, cosmic_ray = 2, inpainted = 4 }
[keywords]
exposure = ["OBSID"]
detector = ["CCDNUM"]
exptime = ["EXPTIME"]
gain = ["GAIN"]
read_noise = ["RDNOISE"]
[[detectors]]
ids = "1-6"
[[layouts]]
name = "planes"
sci = { hdu = ["SCI"] }
weight = { hdu = ["ERR"], kind = "error" }
flag = { hdu = ["DQ"] }
[[layouts]]
name = "plain"
sci = { hdu = [0] }
""",
    "any.toml",
)
DEFAULTS = {"EXPTIME": "10.0", "GAIN": "1.5", "RDNOISE": "4.0", "CCDNUM": "3", "OBSID": "'e1      '"}
ATTRIBUTE = {"EXPTIME": "exptime", "GAIN": "gain", "RDNOISE": "read_noise", "CCDNUM": "detector", "OBSID": "exposure"}
"""Each header keyword sets one property of a unit."""
TOML = {"GAIN": 2.0, "RDNOISE": 3.0}
"""Values that stand for a keyword that is absent."""
UNUSABLE = ["NaN", "Inf", "-Inf", "T", "'a lot   '", "'nan     '", "(1.0, 2.0)", "'1_5     '", "-1.0"]
"""Values of number cards that are no finite, positive numbers."""


def card(keyword, value, *, comment=""):
    return f"{keyword:<8}= {value:>20} / {comment}".ljust(80)[:80]


def write(path, cards):
    """Write a primary image whose header has these very cards, valid or not."""
    data = np.ones(SHAPE, ">f4")
    head = [card("SIMPLE", "T"), card("BITPIX", "-32"), card("NAXIS", "2"), card("NAXIS1", "4"), card("NAXIS2", "3")]
    text = "".join([*head, *cards, "END".ljust(80)])
    raw = text.ljust(-(-len(text) // 2880) * 2880).encode()
    pixels = data.tobytes()
    path.write_bytes(raw + pixels.ljust(2880, b"\0"))
    return path


@st.composite
def number_cards(draw):
    """Cards of one number keyword, and what should come of it: a value, or None for a refusal."""
    keyword = draw(st.sampled_from(["EXPTIME", "GAIN", "RDNOISE"]))
    form = draw(st.sampled_from(["good", "missing", "unusable", "twice", "two values", "lower case", "text", "unit"]))
    number = draw(st.floats(0.5, 2000.0).map(lambda value: float(f"{value:.6g}")))
    written = repr(number)
    if form == "missing":
        return keyword, [], TOML.get(keyword)
    if form == "unusable":
        return keyword, [card(keyword, draw(st.sampled_from(UNUSABLE)))], None
    if form == "twice":
        return keyword, [card(keyword, written)] * 2, number
    if form == "two values":
        return keyword, [card(keyword, written), card(keyword, repr(number * 2))], None
    if form == "lower case":
        return keyword, [card(keyword.lower(), written)], number
    if form == "text":
        return keyword, [card(keyword, f"'{written:<8}'")], number
    if form == "unit" and keyword == "EXPTIME":
        return keyword, [card(keyword, written, comment="[min] open shutter")], number * 60
    return keyword, [card(keyword, written)], number


@QUICK
@given(number_cards())
def test_numbers_are_right_or_refused_by_key_and_file(case):
    keyword, cards, expected = case
    rest = [card(name, value) for name, value in DEFAULTS.items() if name != keyword]
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "frame.fits", cards + rest)
        found = scan_file(path, CAMERA)
    if expected is None:
        (problem,) = found.problems
        assert "frame.fits" in str(problem)
        assert keyword in str(problem)
    else:
        (unit,) = found.units
        assert getattr(unit, ATTRIBUTE[keyword]) == pytest.approx(expected, rel=1e-12)


@QUICK
@given(
    st.sampled_from(["CCDNUM", "OBSID"]),
    st.one_of(
        st.integers(0, 12).map(str),
        st.integers(1, 6).map(lambda number: f"{number}.0"),
        st.integers(1, 6).map(lambda number: f"'{number}       '"),
        st.sampled_from(["T", "2.5", "'two     '", "'        '", "(1.0, 2.0)", "'3 or 4  '"]),
    ),
)
def test_ids_are_right_or_refused_by_key_and_file(keyword, value):
    cards = [card(name, value if name == keyword else default) for name, default in DEFAULTS.items()]
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "frame.fits", cards)
        found = scan_file(path, CAMERA)
    plain = value.strip("'").strip().removesuffix(".0")
    if keyword == "CCDNUM":
        usable = plain.isdigit() and 1 <= int(plain) <= 6
        expected = int(plain) if usable else None
    else:
        usable = value not in ("T", "(1.0, 2.0)")
        expected = plain.replace(" ", "_") or "frame"
    if usable:
        assert getattr(found.units[0], ATTRIBUTE[keyword]) == expected
    else:
        assert "frame.fits" in str(found.problems[0])
        assert keyword in str(found.problems[0])


@st.composite
def multi_extension_files(draw):
    """HDUs of several chips, in any order, named and numbered in one of the usual ways, with others between them.

    Also whether the file says of every plane whose it is, so that all chips must be found.

    Chip k holds k in SCI, k / 10 in ERR, k in DQ, so that each plane says whose it is.
    """
    chips = draw(st.lists(st.integers(1, 8), min_size=1, max_size=5, unique=True))
    tagged = draw(st.booleans())
    versions = draw(st.sampled_from(["all", "none", "science"]))
    keywords = draw(st.sampled_from(["all", "science"]))
    lower = draw(st.booleans())
    weights = draw(st.sampled_from([("ERR", 1), ("VAR", 2), ("IVAR", -2), ("RMS", 1)]))
    flags = draw(st.sampled_from(["DQ", "MASK", "FLG"]))
    lost = draw(st.sampled_from([None, None, None, 0]))
    hdus = []
    for position, chip in enumerate(chips):
        values = (("SCI", chip), (weights[0], (chip / 10) ** weights[1]), (flags, chip))
        for name, value in values:
            if lost == position and name != "SCI":
                continue
            hdu = fits.ImageHDU(np.full(SHAPE, value, np.int16 if name == flags else np.float32))
            full = f"{name}_{chip}" if tagged else name
            hdu.header["EXTNAME"] = full.lower() if lower else full
            if versions == "all" or (versions == "science" and name == "SCI"):
                hdu.header["EXTVER"] = position + 1
            if keywords == "all" or name == "SCI":
                hdu.header["CCDNUM"] = chip
            hdus.append(hdu)
    for name in draw(st.lists(st.sampled_from(["THUMBNAIL", "SEGMENTATION", "TABLE"]), max_size=2)):
        extra = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=[1])]) if name == "TABLE" else None
        hdus.append(extra or fits.ImageHDU(np.full(SHAPE, 99, np.float32), name=name))
    told = tagged or versions == "all" or keywords == "all"
    if told:
        order = draw(st.permutations(range(len(hdus))))
    else:  # only the order tells, and only a regular one does
        order = draw(st.sampled_from([list(range(len(hdus))), list(range(len(hdus)))[::-1]]))
    return chips, [hdus[index] for index in order], told and lost is None


@QUICK
@given(multi_extension_files())
def test_each_chip_gets_its_planes_or_is_refused(case):
    chips, hdus, complete = case
    header = fits.Header({"EXPTIME": 10.0, "OBSID": "e1"})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mosaic.fits"
        fits.HDUList([fits.PrimaryHDU(header=header), *hdus]).writeto(path)
        try:
            found = scan_file(path, CAMERA)
        except InputError as error:
            assert "mosaic.fits" in str(error)  # noqa: PT017
            assert not complete
            return
        for unit in found.units:
            assert (read_sci(unit) == unit.detector).all()
            np.testing.assert_allclose(read_weight(unit), (10 / unit.detector) ** 2, rtol=1e-5)
            assert (read_flag(unit, CAMERA) == unit.detector).all()
    assert {unit.detector for unit in found.units} <= set(chips)
    assert len(found.units) + len(found.problems) >= len(chips)
    if complete:
        assert len(found.units) == len({chip for chip in chips if chip <= 6})
    assert all("mosaic.fits" in str(problem) for problem in found.problems)


@QUICK
@given(
    st.sampled_from(["i1", "u1", ">i2", "<i2", "u2", "i4", ">u4", "i8", "u8", "f4", "f8"]),
    st.lists(st.integers(-(2**33), 2**33), min_size=1, max_size=12),
)
def test_flags_of_any_type_are_right_or_refused(dtype, values):
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        values = [int(np.clip(value, limits.min, limits.max)) for value in values]
    flag = np.zeros(SHAPE, kind)
    flag.ravel()[: len(values)] = values
    primary = fits.PrimaryHDU(header=fits.Header({"EXPTIME": 10.0, "OBSID": "e1", "CCDNUM": 1}))
    planes = [fits.ImageHDU(np.ones(SHAPE, np.float32), name=name) for name in ("SCI", "ERR")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frame.fits"
        fits.HDUList([primary, *planes, fits.ImageHDU(flag, name="DQ")]).writeto(path)
        (unit,) = scan_file(path, CAMERA).units
        wanted = [int(value) for value in flag.ravel()]
        if kind.kind == "i" and kind.itemsize < 4:  # the highest bit of a short integer is a flag
            wanted = [value % (1 << 8 * kind.itemsize) for value in wanted]
        if all(0 <= value < 2**31 for value in wanted):
            assert read_flag(unit, CAMERA).ravel().tolist() == wanted
        else:
            with pytest.raises(InputError, match=r"frame\.fits"):
                read_flag(unit, CAMERA)
