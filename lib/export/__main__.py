"""Ask a trained folder a question: python -m lib.export outputs/demo/merged "Calculate 9 + 8." """

import sys

from lib.errors import BadInput
from lib.process import keep_byte_code

if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit('usage: python -m lib.export FOLDER "QUESTION" …')
    keep_byte_code()
    from lib.export.page import answer

    try:
        print(*answer(sys.argv[1], sys.argv[2:]), sep="\n")
    except BadInput as error:
        raise SystemExit(str(error)) from error
