import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
from demo_training import autoencoder
autoencoder.train(Path(sys.argv[1]), int(sys.argv[2]), True)
