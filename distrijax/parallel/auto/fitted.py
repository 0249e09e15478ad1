"""Written by `python docs/measurements/waiting.py --fit`, from programs that XLA compiled."""

from distrijax.parallel.auto.questions import Fit

FITTED = Fit((1.164, 1.089, 1.009, 0.52, 5.86), {"halo": 0.44, "moments": 1.847, "attention": 1.882})
