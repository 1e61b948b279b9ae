"""/api/v1/models: what can read."""

from fastapi import APIRouter

from lungkit.gateway.problems import Refused
from lungkit.gateway.requests import MayUse, Shared
from lungkit.gateway.schemas import Model, ModelWithCard
from lungkit.models import registry

router = APIRouter(prefix="/models", tags=["models"])


@router.get("", summary="The models in use")
def list_models(access: MayUse, gateway: Shared) -> list[Model]:
    """Every model that images can be read with."""
    return [Model.of(registry.active(name)) for name in gateway.pool.names()]


@router.get("/{name}", summary="A model with its card")
def get_model(name: str, access: MayUse, gateway: Shared) -> ModelWithCard:
    """One model, and what it learned from and how well it did."""
    if name not in gateway.pool.names():
        raise Refused("not-found", f"no such model; there are: {', '.join(gateway.pool.names())}")
    version = registry.active(name)
    return ModelWithCard(**Model.of(version).model_dump(), card=version.card.to_dict())
