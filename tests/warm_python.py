"""An interpreter for tests that start many processes: each is a fork of one process that has imported the libraries.

The executables of the stand-in SDKs and the jobs of the backend for HTP run some hundred times in the suite, and much of their time
would go into importing numpy and ONNX. `interpreter()` is a file that takes the place of Python's: as the interpreter of a script,
and on a command line with ``-c``, ``-m`` or a script. It hands arguments, variables, working directory and the three streams to a
server, which forks; it passes signals on and ends as the fork has ended, by a signal if need be. A fork begins with nothing of this
project imported, and with the search path and the variables that a fresh process would have. It ends as one ends: threads are waited
for, exit handlers run, streams are flushed.

What a fork cannot have is refused: other options of Python's, other warnings, another encoding, another hash seed. A test of what a
process imports, or of variables that a library reads when it is imported, takes a process of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import io
import marshal
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

#: What is imported before the first fork. None may start a thread: a fork has none but the one that forks.
MODULES = (
    "google.protobuf.descriptor_pb2",
    "google.protobuf.message_factory",
    "numpy",
    "onnx",
    "onnx.external_data_helper",
    "onnx.inliner",
    "onnx.numpy_helper",
    "onnx.shape_inference",
    "yaml",
)
#: Exit code when nothing was run.
REFUSED = 119
#: Variables of Python's whose value may differ from the server's.
_FOLLOWED = ("PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")
#: Libraries start threads when they are imported, unless they are told otherwise.
_NO_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

#: Only modules that are built in: it costs ten milliseconds. What leads through an open folder may have any length.
_CLIENT = """\
#!{python} -IS
import _signal, _socket, array, marshal, posix, sys

FORWARDED = [getattr(_signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")]
ignored = [number for number in FORWARDED if _signal.getsignal(number) == _signal.SIG_IGN]
mask = posix.umask(0)
posix.umask(mask)
try:
    folder = posix.open({folder!r}, posix.O_RDONLY)
    server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    server.connect(f"/proc/self/fd/{{folder}}/socket")
    for number in set(FORWARDED) - set(ignored):
        _signal.signal(number, lambda number, _: server.send(bytes([number])))
    request = marshal.dumps((sys.argv[1:], dict(posix.environ), posix.getcwdb(), mask, ignored))
    streams = array.array("i", (0, 1, 2))
    server.sendmsg([len(request).to_bytes(8, "little")], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, streams)])
    server.sendall(request)
    answer = server.recv(4)
except OSError as error:
    answer = str(error).encode()
if len(answer) != 4:
    posix.write(2, b"no process can be forked: " + answer + b"; what the server said is in " + {log!r} + b"\\n")
    posix._exit({refused})
status = int.from_bytes(answer, "little", signed=True)
if status < 0:
    if status != -_signal.SIGKILL:
        _signal.signal(-status, _signal.SIG_DFL)
    posix.kill(posix.getpid(), -status)
posix._exit(status)
"""


class WarmPython:
    """A server and the interpreter that leads to it, in a folder of their own. The server ends with this process at the latest."""

    def __init__(self, folder: Path, modules: Sequence[str] = MODULES) -> None:
        self.log = folder / "log"
        self.interpreter = folder / "python"
        self.interpreter.write_text(
            _CLIENT.format(python=sys.executable, folder=str(folder), log=os.fsencode(self.log), refused=REFUSED),
            encoding="utf-8",
        )
        self.interpreter.chmod(0o700)
        place = os.open(folder, os.O_RDONLY)
        # Who connects waits until the server has imported its modules.
        with socket.socket(socket.AF_UNIX) as listener, self.log.open("wb") as log:
            listener.bind(f"/proc/self/fd/{place}/socket")
            listener.listen(64)
            os.close(place)
            variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | _NO_THREADS
            self._server = subprocess.Popen(
                [sys.executable, "-P", __file__, str(listener.fileno()), *modules],
                env=variables,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )

    def close(self) -> None:
        """Ends the server, and with it what it has forked."""
        self._server.stdin.close()
        self._server.wait()


@functools.cache
def interpreter() -> Path:
    """That of the server of this process, which is started when it is first asked for; Python itself where it cannot be."""
    if not Path("/proc/self/fd").is_dir():
        return Path(sys.executable)
    folder = tempfile.TemporaryDirectory(prefix="warm-python-", dir=os.environ.get("TMPDIR"))
    warm = WarmPython(Path(folder.name))

    def close() -> None:
        warm.close()
        folder.cleanup()

    atexit.register(close)
    return warm.interpreter


def _serve(listener: socket.socket, modules: Sequence[str]) -> None:
    for name in modules:
        importlib.import_module(name)
    threads = len([*Path("/proc/self/task").iterdir()])
    if threads > 1:
        sys.exit(f"{threads - 1} threads were started by importing {', '.join(modules)}")
    gc.collect()
    gc.freeze()
    search_path = sys.path.copy()
    waiting = select.poll()
    waiting.register(sys.stdin.fileno(), select.POLLIN)
    waiting.register(listener.fileno(), select.POLLIN)
    while True:
        ready = dict(waiting.poll())
        if sys.stdin.fileno() in ready:  # the other end is closed
            return
        with listener.accept()[0] as connection:
            if os.fork() == 0:
                # Whatever is raised in a fork, it never goes on as a server.
                try:
                    listener.close()
                    _attend(connection, search_path)
                except BaseException:  # noqa: BLE001 -- into the log, or to who reads the fork's errors
                    traceback.print_exc()
                finally:
                    os._exit(REFUSED)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass


def _attend(connection: socket.socket, search_path: list[str]) -> NoReturn:
    """Forks what was asked for, passes signals on, and tells how it ended; kills it when nobody waits for it any more."""
    first, streams, _, _ = socket.recv_fds(connection, 8, 3)
    content = bytearray()
    while len(content) < int.from_bytes(first, "little"):
        more = connection.recv(1 << 20)
        if not more:
            raise ConnectionError("who asked has ended")
        content += more
    # A signal ends the wait for the next one.
    ended, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    process = os.fork()
    if process == 0:
        signal.set_wakeup_fd(-1)
        for fd in (ended, wakes, connection.detach()):
            os.close(fd)
        _run(*marshal.loads(bytes(content)), streams, search_path)
    for fd in streams:
        os.close(fd)
    waiting = select.poll()
    waiting.register(connection.fileno(), select.POLLIN)
    waiting.register(ended, select.POLLIN)
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            with contextlib.suppress(OSError):
                connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "little", signed=True))
            os._exit(0)
        ready = dict(waiting.poll())
        if ended in ready:
            os.read(ended, 64)
        if connection.fileno() in ready:
            number = connection.recv(1)
            if number:
                os.kill(process, number[0])
                continue
            for kill in (os.kill, os.killpg):  # it may have no group of its own yet
                with contextlib.suppress(ProcessLookupError):
                    kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            os._exit(0)


def _run(
    arguments: list[str],
    variables: dict[bytes, bytes],
    directory: bytes,
    mask: int,
    ignored: list[int],
    streams: list[int],
    search_path: list[str],
) -> NoReturn:
    """Runs a program in this process, which was forked for it, and ends with it."""
    os.setsid()
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
        os.close(fd)
    for each in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(each, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for each in ignored:
        signal.signal(each, signal.SIG_IGN)
    os.umask(mask)
    os.chdir(directory)
    options, program, rest = _parsed(arguments)
    isolated = "-I" in options
    asked = {os.fsdecode(name): os.fsdecode(value) for name, value in variables.items()}
    pythons = {} if isolated else {name: value for name, value in asked.items() if name.startswith("PYTHON")}
    for name in {*pythons, *(name for name in os.environ if name.startswith("PYTHON") and not isolated)} - {*_FOLLOWED}:
        if pythons.get(name) != os.environ.get(name):
            _refuse(f"{name}={pythons.get(name)}")
    os.environ.clear()
    os.environ.update(asked)
    sys.dont_write_bytecode = bool(pythons.get("PYTHONDONTWRITEBYTECODE"))
    _open_streams(bool(pythons.get("PYTHONUNBUFFERED")))
    sys.path[:] = [path for path in pythons.get("PYTHONPATH", "").split(os.pathsep) if path] + search_path
    if "numpy.random" in sys.modules:  # the module `random` does so by itself
        sys.modules["numpy.random"].seed()
    main = ModuleType("__main__")
    # Nothing of this module, which a fresh process would not have.
    sys.modules["__main__"] = main
    if not {"-I", "-P"} & {*options}:
        first = {"-c": "", "-m": str(Path.cwd())}.get(program[0], str(Path(program[1]).resolve().parent))
        sys.path.insert(0, first)
    importlib.invalidate_caches()
    _end(_outcome(lambda: _execute(program, rest, main)))


def _parsed(arguments: list[str]) -> tuple[list[str], tuple[str, str], list[str]]:
    """Options of Python's; ``-c``, ``-m`` or nothing, and what stands behind it; the program's arguments."""
    options: list[str] = []
    for number, argument in enumerate(arguments):
        if argument in ("-c", "-m") and number + 1 < len(arguments):
            return options, (argument, arguments[number + 1]), arguments[number + 2 :]
        if not argument.startswith("-"):
            return options, ("", argument), arguments[number + 1 :]
        if argument not in ("-I", "-P"):
            _refuse(argument)
        options.append(argument)
    return _refuse("no program")


def _refuse(what: str) -> NoReturn:
    os.write(2, f"{what}: a fork cannot have this; run {sys.executable} for it\n".encode())
    os._exit(REFUSED)


_BUFFERED = {"r": io.BufferedReader, "w": io.BufferedWriter}


def _open_streams(unbuffered: bool) -> None:
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        before = getattr(sys, f"__{name}__")
        binary = io.FileIO(number, mode, closefd=False)
        binary.name = f"<{name}>"
        stream = io.TextIOWrapper(
            binary if unbuffered and number else _BUFFERED[mode](binary),
            before.encoding,
            before.errors,
            line_buffering=(name == "stderr" and not unbuffered) or os.isatty(number),
            write_through=unbuffered and number > 0,
        )
        stream.mode = mode
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _execute(program: tuple[str, str], arguments: list[str], main: ModuleType) -> None:
    kind, text = program
    sys.argv = [kind or text, *arguments]
    if kind == "-m":
        runpy._run_module_as_main(text)
        return
    if not kind:
        main.__file__ = text
    source: str | bytes = text if kind else Path(text).read_bytes()
    exec(compile(source, "<string>" if kind else text, "exec", dont_inherit=True), main.__dict__)


def _outcome(call: Callable[[], None]) -> int:
    """The exit code; negative for a signal."""
    try:
        call()
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        sys.stderr.write(f"{error.code}\n")
        return 1
    except BaseException as error:  # noqa: BLE001 -- as at the end of any program
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _end(code: int) -> NoReturn:
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except OSError as error:
            code = 120 if stream is sys.stdout else code
            with contextlib.suppress(OSError):
                os.write(2, f"Exception ignored in: {stream!r}\n{type(error).__name__}: {error}\n".encode())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as passed:
        _serve(passed, sys.argv[2:])
