"""Which session each page's kernel belongs to: no other session can reach it."""

from collections.abc import Awaitable, Callable
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_core.utils import ensure_async
from jupyter_server.auth.authorizer import Authorizer
from jupyter_server.auth.identity import User
from jupyter_server.base.handlers import JupyterHandler

from lungkit.clinic.web.identity import Visitor

MOST_PAGES = 4  # open at once in one session; a further page ends the oldest one, because each holds a kernel


class OwnPython(KernelSpecManager):
    """Kernels run with this same Python, whatever other kernels are installed."""

    def _kernel_dirs_default(self) -> list[str]:
        return []


class OwnKernelOnly(Authorizer):
    """A session may use the kernels of its own pages, and nothing else that an authorizer is asked about."""

    def is_authorized(self, handler: JupyterHandler, user: User, action: str, resource: str) -> bool:
        clinic: Any = self.parent
        owner = clinic.owners.get(handler.path_kwargs.get("kernel_id"))
        return resource == "kernels" and isinstance(user, Visitor) and owner == user.session_id


class KernelOwners(dict[str, str]):
    """Kernel to the session that it belongs to, oldest first."""

    def add(self, kernel_id: str, session_id: str) -> list[str]:
        """Note a new page; returns the kernels of the session's oldest pages, which have to end."""
        self[kernel_id] = session_id
        return self.kernels_of(session_id)[:-MOST_PAGES]

    def kernels_of(self, session_id: str) -> list[str]:
        """The kernels of one session, oldest first."""
        return [kernel for kernel, owner in self.items() if owner == session_id]

    def keep_only(self, running: list[str]) -> None:
        """Forget kernels that run no longer."""
        for kernel_id in set(self) - set(running):
            del self[kernel_id]


class OwningManager:
    """The kernel manager during one visit: `own` is called with the kernel that it starts or takes from the pool."""

    def __init__(self, manager: Any, own: Callable[[str], Awaitable[None]]):
        self._manager, self._own = manager, own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    async def get_rendered_notebook(self, **visit: Any) -> tuple[Any, Any, str]:
        task, rendered, kernel_id = await self._manager.get_rendered_notebook(**visit)
        await self._own(kernel_id)
        return task, rendered, kernel_id

    async def start_kernel(self, **options: Any) -> str:
        kernel_id: str = await ensure_async(self._manager.start_kernel(**options))
        await self._own(kernel_id)
        return kernel_id
