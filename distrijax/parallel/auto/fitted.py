"""Written by `python docs/measurements/waiting.py --fit`, from programs that XLA compiled."""

from distrijax.parallel.auto.questions import Constants

FITTED = Constants((0.986, 1.085, 1.398, 0.879, 4.774), {"halo": 0.575, "moments": 3.343, "attention": 0.861})
