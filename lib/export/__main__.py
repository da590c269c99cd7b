"""Ask a trained folder a question: python -m lib.export outputs/demo/merged "Calculate 9 + 8." """

import sys

from lib.errors import BadInput
from lib.export.page import answer


def main(arguments: list[str]) -> None:
    if len(arguments) < 2:
        raise SystemExit('usage: python -m lib.export FOLDER "QUESTION" …')
    try:
        print(*answer(arguments[0], arguments[1:]), sep="\n")
    except BadInput as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main(sys.argv[1:])
