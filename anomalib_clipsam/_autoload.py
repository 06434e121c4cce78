# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Registration with anomalib: an import hook that makes ``ClipSam`` and ``DrawnParts`` known to it.

anomalib 2 finds models and data modules among the loaded subclasses of its base classes and the attributes of
``anomalib.models`` and ``anomalib.data``; it reads no entry points. So ``anomalib_clipsam_autoload.pth`` calls
:func:`install` whenever Python starts. That only adds a finder. Once ``anomalib.models`` or ``anomalib.data`` has run,
the class is imported and set on it. On anomalib's command line, errors of ours then end in one sentence, and our log
lines are printed once.

``ANOMALIB_CLIPSAM_AUTOLOAD=0`` in the environment switches this off.

This module runs at every start of Python: it imports only modules that are part of the interpreter.
"""

import sys
from _thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

PACKAGE = __name__.partition(".")[0]

#: anomalib module -> our module, the class in it and the anomalib modules that get it; or a function that is called.
HOSTS = {
    "anomalib.models": (f"{PACKAGE}.lightning_model", "ClipSam", ("anomalib.models", "anomalib.models.image")),
    "anomalib.data": (f"{PACKAGE}.drawn_parts.datamodule", "DrawnParts", ("anomalib.data",)),
    "anomalib.cli.cli": (f"{PACKAGE}.errors.command_line", "install_error_hook", ()),
}


class _Finder:
    """Meta path finder that leaves the finding to the others, and notices when anomalib's modules and ours have run.

    Our modules import anomalib's, which would import ours: classes are registered only when no watched module,
    anomalib's or ours, is running in any thread. The last one to end registers them. (If one thread has imported
    anomalib while another still imports this package, the first sees the class a moment later.)
    """

    def __init__(self) -> None:
        self.lock = allocate_lock()
        self.running = 0  # watched modules that are being executed
        self.pending: set[str] = set()  # keys of HOSTS that have run and do not have their class yet
        self.warned = False

    def find_spec(
        self,
        fullname: str,
        path: "Sequence[str] | None" = None,
        target: "ModuleType | None" = None,
    ) -> "ModuleSpec | None":
        """Ask the finders after this one and watch the loader they give."""
        if fullname not in HOSTS and not fullname.startswith(f"{PACKAGE}."):
            return None
        finders = list(sys.meta_path)
        for finder in finders[finders.index(self) + 1 :] if self in finders else ():
            spec = finder.find_spec(fullname, path, target) if hasattr(finder, "find_spec") else None
            if spec is not None:
                self.watch(fullname, spec.loader)
                return spec
        return None

    def watch(self, name: str, loader: "Loader | None") -> None:
        """Be told when ``loader`` has executed the module ``name``.

        The loader keeps its class and gets its method back before the module runs, so that code that reads ``__spec__``
        or ``__loader__`` sees what it would see without this hook.
        """
        exec_module = getattr(loader, "exec_module", None)
        if exec_module is None or isinstance(loader, type):  # a namespace package, or a class that many modules share
            return

        def watched(module: "ModuleType") -> None:
            loader.__dict__.pop("exec_module", None)
            with self.lock:
                self.running += 1
            try:
                exec_module(module)
            finally:
                with self.lock:
                    self.running -= 1
            with self.lock:
                self.pending.update({name} & set(HOSTS))
                due = [] if self.running else sorted(self.pending)
                self.pending.difference_update(due)
            self.register(due)

        try:
            loader.exec_module = watched  # type: ignore[method-assign]  # this loader alone
        except (AttributeError, TypeError):  # a frozen loader: the package still works, as `anomalib_clipsam.ClipSam`
            return

    def register(self, hosts: "list[str]") -> None:
        """Import the classes for these anomalib modules and set them there.

        If that fails, anomalib is left as it is, and the first failure is reported once, in the main process only.
        """
        from importlib import import_module

        for host in hosts:
            module_name, class_name, places = HOSTS[host]
            try:
                cls = getattr(import_module(module_name), class_name)
                if not places:
                    cls()
            except Exception as error:  # noqa: BLE001  # whatever it is, anomalib must work as before
                self.warn(f"{type(error).__name__}: {error}")
                continue
            for place in filter(None, map(sys.modules.get, places)):
                setattr(place, class_name, cls)
                allowed = getattr(place, "ALLOWED_MODULES", None)  # what `anomalib benchmark` takes a class from
                if isinstance(allowed, set):
                    allowed.add(PACKAGE)
                names = getattr(place, "__all__", None)
                if isinstance(names, list) and class_name not in names:
                    names.append(class_name)

    def warn(self, reason: str) -> None:
        """Report once why the plugin is missing: by a warning, or by a log line where warnings are errors."""
        processes = sys.modules.get("multiprocessing.process")
        if self.warned or (processes is not None and processes.parent_process() is not None):
            return
        self.warned = True
        import warnings

        msg = (
            f"anomalib runs without the plugin {PACKAGE}, which could not be imported ({reason}). Fix the cause, "
            f"or `pip uninstall {PACKAGE}`, or set ANOMALIB_CLIPSAM_AUTOLOAD=0 to do without it."
        )
        try:
            warnings.warn(msg, RuntimeWarning, stacklevel=2)
        except RuntimeWarning:
            import logging

            logging.getLogger(PACKAGE).warning(msg)


def install() -> None:
    """Put the finder before all others, once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
