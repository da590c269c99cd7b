"""Ask a trained folder a question: python -m lib.export outputs/demo/merged "Calculate 9 + 8." """

import sys

from lib.errors import BadInput
from lib.export.page import answer

if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit('usage: python -m lib.export FOLDER "QUESTION" …')
    try:
        print(*answer(sys.argv[1], sys.argv[2:]), sep="\n")
    except BadInput as error:
        raise SystemExit(str(error)) from error
