import sys

from distrijax.cli import main

sys.exit(main())
