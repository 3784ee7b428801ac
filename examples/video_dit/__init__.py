"""A video transformer from outside the package, in the place of I2V's UNet (docs/extending.md)."""
