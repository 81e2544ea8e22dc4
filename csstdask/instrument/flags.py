"""The data-quality plane of a camera: bits, or codes that are converted to bits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from csstdask.core.settings import FrozenSettings


class Flags(FrozenSettings):
    """The data-quality plane. Codes are converted to bits on ingest."""

    encoding: Literal["bits", "codes"] = Field("bits", description="Encoding of the flags in the files.")
    bits: dict[str, int] = Field(description="Meaning to mask, one bit each.")
    codes: dict[str, tuple[int, ...]] = Field(default_factory=dict, description="Meaning to codes in the file.")
    plane_keyword: str | None = Field(
        None, description="Prefix of header keywords that number the mask planes, such as MP_ for MP_SAT = 1."
    )
    other: str | None = Field(None, description="With plane_keyword: bit for mask planes that `bits` does not name.")
    bad_values: tuple[float, ...] | None = Field(None, description="Values of the science plane that mark bad pixels.")
    cosmic_ray: str = Field("cosmic_ray", description="Bit set by export where csstdask detected a cosmic ray.")
    incoming_cosmic_ray: tuple[str, ...] = Field(
        ("cosmic_ray",), description="Bits in which the pipeline of the files reports cosmic rays."
    )
    inpainted: str = Field("inpainted", description="Bit set by export for repaired pixels.")
    bad: str = Field("bad", description="Bit set by a bad-pixel map.")
    ignore_flags: tuple[str, ...] = Field((), description="Bits of pixels that are ignored.")

    @model_validator(mode="after")
    def _names_exist(self) -> Flags:
        for key in ("cosmic_ray", "inpainted", *(("bad",) if self.bad_values else ())):
            if getattr(self, key) not in self.bits:
                raise ValueError(f"flags.{key} = {getattr(self, key)!r} is not one of flags.bits {sorted(self.bits)}")
        for key in ("incoming_cosmic_ray", "ignore_flags"):
            for name in getattr(self, key):
                if name not in self.bits:
                    raise ValueError(f"flags.{key} names {name!r}, not one of flags.bits {sorted(self.bits)}")
        for name in self.codes:
            if name not in self.bits:
                raise ValueError(f"flags.codes names {name!r}, not one of flags.bits {sorted(self.bits)}")
        for name, value in self.bits.items():
            if value <= 0 or value & (value - 1) or value >= 2**31:
                raise ValueError(f"flags.bits.{name} = {value} is not one bit below 2^31")
        if len(set(self.bits.values())) != len(self.bits):
            raise ValueError("flags.bits gives two meanings to one bit")
        if (self.plane_keyword is None) != (self.other is None) or self.other not in {None, *self.bits}:
            raise ValueError("flags.plane_keyword and flags.other, one of flags.bits, go together")
        if self.encoding == "codes" and not self.codes:
            raise ValueError("flags.encoding = 'codes' needs flags.codes")
        if set(self.ignore_flags) & set(self.incoming_cosmic_ray):
            raise ValueError(
                "flags.ignore_flags contains a cosmic-ray bit; csstdask's detection replaces that of the files"
            )
        return self

    def mask(self, *names: str) -> int:
        """Return the union of the named bits.

        Examples
        --------
        >>> Flags(bits={"bad": 1, "cosmic_ray": 4, "inpainted": 8}).mask("bad", "cosmic_ray")
        5
        """
        value = 0
        for name in names:
            value |= self.bits[name]
        return value

    @property
    def cosmic_ray_mask(self) -> int:
        """Return the bit that export sets for cosmic rays."""
        return self.bits[self.cosmic_ray]

    @property
    def incoming_cosmic_ray_mask(self) -> int:
        """Return the bits that the pipeline of the files sets for cosmic rays."""
        return self.mask(*self.incoming_cosmic_ray)

    @property
    def inpainted_mask(self) -> int:
        """Return the bit for repaired pixels."""
        return self.bits[self.inpainted]

    @property
    def ignore_mask(self) -> int:
        """Return the bits of ignored pixels."""
        return self.mask(*self.ignore_flags)
