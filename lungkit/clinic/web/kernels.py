"""Which session each page's kernel belongs to: no other session can reach it."""

from collections.abc import Awaitable, Callable
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_server.auth.authorizer import Authorizer
from jupyter_server.auth.identity import User
from jupyter_server.base.handlers import JupyterHandler

from lungkit import config
from lungkit.clinic.web.identity import Visitor


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

    def __init__(self) -> None:
        super().__init__()
        self._people: dict[str, str] = {}  # session to the person's user name

    def add(self, kernel_id: str, session_id: str, person: str) -> list[str]:
        """Note a new page; returns the kernels of the person's oldest pages, in any session, which have to end.

        A person may have `config.pages_per_person` pages, because each holds a kernel.
        """
        self[kernel_id], self._people[session_id] = session_id, person
        return self.of_person(person)[: -config.pages_per_person()]

    def of_person(self, person: str) -> list[str]:
        """The kernels of all sessions of one person, oldest first."""
        return [kernel for kernel, session in self.items() if self._people[session] == person]

    def kernels_of(self, session_id: str) -> list[str]:
        """The kernels of one session, oldest first."""
        return [kernel for kernel, owner in self.items() if owner == session_id]

    def keep_only(self, running: list[str]) -> None:
        """Forget kernels that run no longer."""
        for kernel_id in set(self) - set(running):
            del self[kernel_id]
        for session_id in set(self._people) - set(self.values()):
            del self._people[session_id]


class OwningManager:
    """The kernel manager during one visit. take: called before it takes one of the pool; own: with that kernel."""

    def __init__(self, manager: Any, take: Callable[[], None], own: Callable[[str], Awaitable[None]]):
        self._manager, self._take, self._own = manager, take, own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    async def get_rendered_notebook(self, **visit: Any) -> tuple[Any, Any, str]:
        self._take()
        task, rendered, kernel_id = await self._manager.get_rendered_notebook(**visit)
        await self._own(kernel_id)
        return task, rendered, kernel_id
