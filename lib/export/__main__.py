"""Ask a trained folder a question: python -m lib.export outputs/demo/merged "Calculate 9 + 8." """

import sys

from lib.export.examples import main

if __name__ == "__main__":
    main(sys.argv[1:])
