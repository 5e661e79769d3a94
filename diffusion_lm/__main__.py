"`python -m diffusion_lm` is `dlm`"
import sys

from .cli import main

if __name__ == "__main__": sys.exit(main())
