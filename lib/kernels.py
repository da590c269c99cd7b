"""Kernels that begin with the libraries imported.

Importing torch, transformers and vLLM takes each notebook ten seconds of a core. On a processor
the runner has it done beforehand, while it starts itself: a template process imports them, and the
kernels are forked from it. Each begins as the template was, and nothing of one notebook reaches the
next. With a GPU every kernel starts by itself, as CUDA does not outlive a fork.
"""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.metadata import EntryPoint
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar, TextIO

import psutil
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

from lib.config import ROOT, Config
from lib.hardware import detect_hardware
from lib.process import adopt_orphans, end_with_parent
from lib.runs import Run, quiet_process

TABLES = ("ipykernel.ipkernel", "pandas.io.formats.style", "matplotlib.pyplot", "ipywidgets")
MODELS = (*TABLES, "transformers.models.llama.modeling_llama", "lib.engines", "peft")
VLLM = ("vllm.entrypoints.llm", "vllm.v1.worker.cpu_worker", "vllm.model_executor.models.llama")
PLAIN = {
    "01_setup": MODELS,
    "02_reward_design": (*MODELS, *VLLM),
    "04_pass_at_k_eval": (*MODELS, *VLLM),
    "05_merge_export": MODELS,
}
# Unsloth changes transformers and TRL: only the notebook that trains with it may see that.
UNSLOTH = {"03_training": (*TABLES, "unsloth", "trl.trainer.grpo_trainer", *VLLM)}
Fork = Callable[[list[str], dict[str, str], str], int]


class Template:
    """A process that imports what notebooks need, and forks a kernel for each of them.

    Args:
        needed: by notebook, the modules that its kernel begins with.
    """

    running: ClassVar[set[int]] = set()  # process ids

    def __init__(self, needed: Mapping[str, Sequence[str]], run: Run):
        self.needed, self.environment = dict(needed), dict(os.environ)
        self.pipe, theirs = Pipe()
        modules = dict.fromkeys(module for each in needed.values() for module in each)
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno()), str(run.folder), *modules],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        self.running.add(self.process.pid)

    def fork(self, name: str, command: list[str], environment: dict[str, str], folder: str) -> int:
        """The process id of the notebook's kernel, now a child of this process; 0 where the
        template has failed.

        Raises:
            RuntimeError: it was interrupted.
        """
        changed = dict(environment.items() - self.environment.items())
        adopt_orphans(True)
        try:
            self.pipe.send((self.needed.pop(name), command, changed, folder))
            return self.pipe.recv()
        except (EOFError, OSError):
            if self.process.wait() == -signal.SIGINT:
                raise RuntimeError("The kernel's template was interrupted.") from None
            return 0
        finally:
            adopt_orphans(False)
            if not self.needed:
                self.close()

    def close(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.wait()
        self.running.discard(self.process.pid)


@contextmanager
def templates(names: Sequence[str], config: Config, run: Run) -> Iterator[dict[str, Template]]:
    """The templates for these notebooks' kernels, by notebook; none where forking does not help."""
    forks = config.profile == "cpu" and not detect_hardware().gpu and adopt_orphans(False)
    first = ("reasoning_gym",) if config.task == "reasoning_gym" else ()
    groups = (PLAIN, {} if config.backend == "transformers" else UNSLOTH)
    asked = [{name: (*first, *of[name]) for name in names if name in of} for of in groups]
    started = [Template(needed, run) for needed in asked if needed and forks and len(names) > 1]
    try:
        yield {name: template for template in started for name in template.needed}
    finally:
        for template in started:
            template.close()


class Provisioner(LocalProvisioner):
    """Starts Jupyter's kernels while it is used: by `fork` where that is set, and can."""

    fork: Fork | None = None

    @classmethod
    @contextmanager
    def used(cls, fork: Fork | None) -> Iterator[None]:
        factory = KernelProvisionerFactory.instance()
        factory.provisioners["suite"] = EntryPoint("suite", f"{__name__}:{cls.__name__}", "")
        before, factory.default_provisioner_name = factory.default_provisioner_name, "suite"
        cls.fork = fork
        try:
            yield
        finally:
            cls.fork, factory.default_provisioner_name = None, before

    async def launch_kernel(self, cmd: list[str], **settings: Any) -> dict[str, Any]:
        pid, fork = 0, Provisioner.fork
        if fork and cmd[:3] == [sys.executable, "-m", "ipykernel_launcher"]:
            environment = settings["env"] | {"JPY_PARENT_PID": str(os.getpid())}
            pid = fork(cmd[2:], environment, str(settings.get("cwd") or Path.cwd()))
        if not pid:
            return await super().launch_kernel(cmd, **settings)
        self.process, self.pid, self.pgid = _Forked(pid), pid, pid
        return self.connection_info

    async def send_signal(self, signum: int) -> None:
        if signum == signal.SIGINT and self.parent.shutting_down:
            # Jupyter interrupts what may still be running. A kernel that is about to end its last
            # answer would call that an error; a moment later it takes no notice.
            await asyncio.sleep(0.1)
        await super().send_signal(signum)


class _Forked(psutil.Process):
    """A child that subprocess did not start, with what LocalProvisioner asks of a Popen."""

    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        with suppress(psutil.TimeoutExpired):
            return self.wait(timeout=0)
        return None


class _Stream:
    """What libraries find as sys.stdout or sys.stderr and may keep: in the template the run's log,
    in a kernel what `sys` has then."""

    log: TextIO | None = None

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(_Stream.log or getattr(sys, self._name), attribute)


def main(pipe: Connection, run: Run, modules: list[str]) -> None:
    """The template; after a fork, the kernel."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    quiet_process(run)
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # as a kernel
    _Stream.log = (run.folder / "libraries.log").open("a", buffering=1, encoding="utf-8")
    sys.stdout, sys.stderr = _Stream("stdout"), _Stream("stderr")
    asked = _serve(pipe, modules)
    sys.stdout, sys.stderr, _Stream.log = sys.__stdout__, sys.__stderr__, None
    if asked:
        _become_kernel(pipe, *asked)


def _serve(pipe: Connection, left: list[str]) -> tuple[list[str], dict[str, str], str] | None:
    """Import the modules that are left, and fork whenever a kernel's are there. Returns what was
    asked in a kernel, and None where nobody asks any more."""
    asked = None
    while True:
        if asked is None and (pipe.poll() or not left):
            try:
                asked = pipe.recv()
            except EOFError:
                return None
        if asked is None or not set(left).isdisjoint(asked[0]):
            import_module(left.pop(0))
        elif _fork():
            return asked[1:]
        else:
            asked = None


def _fork() -> bool:
    """Whether this is the new process, a child of the runner and not of the template."""
    gc.freeze()  # looked through for cycles, the shared memory would be written to, and copied
    between = os.fork()
    if between:
        os.waitpid(between, 0)
        return False
    between = os.getpid()
    if os.fork():
        os._exit(0)
    while os.getppid() == between:
        time.sleep(0.001)
    return True


def _become_kernel(
    pipe: Connection, arguments: list[str], environment: dict[str, str], folder: str
) -> None:
    from ipykernel.kernelapp import IPKernelApp

    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    sys.path.remove(os.getcwd())  # put there by `python -m`
    os.chdir(folder)
    os.environ.update(environment)
    sys.argv = [*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"]
    pipe.send(os.getpid())
    pipe.close()
    IPKernelApp.launch_instance()


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])), Run(Path(sys.argv[2])), sys.argv[3:])
