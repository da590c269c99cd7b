"""What a first run would otherwise wait for: the embedded model as safetensors, and the byte code
of the libraries. `tools/setup.sh` asks for it, on two cores."""

import subprocess
import sys

from lib.models import embedded_folder
from lib.process import keep_byte_code

IMPORTS = """
import datasets, ipykernel.kernelapp, ipywidgets, matplotlib.pyplot, pandas
import lib.doctor, lib.evaluation, lib.export.certificate, lib.report, lib.training.trainer
import vllm.entrypoints.llm, vllm.v1.worker.cpu_worker
from trl import GRPOTrainer
"""


def main() -> None:
    keep_byte_code()
    words = [sys.executable, "-c", IMPORTS]
    imports = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    embedded_folder()
    imports.wait()  # where one fails, a notebook will say so


if __name__ == "__main__":
    main()
