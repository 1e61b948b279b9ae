"""/api/v1/models: what can read."""

from fastapi import APIRouter

from lungkit.gateway.problems import Refused
from lungkit.gateway.requests import MayUse, Shared, version_in_use
from lungkit.gateway.schemas import Model, ModelWithCard
from lungkit.models import registry

router = APIRouter(prefix="/models", tags=["models"])


@router.get("", summary="The models in use")
def list_models(access: MayUse, gateway: Shared) -> list[Model]:
    """Every model that images can be read with."""
    return [Model.of(registry.active(name)) for name in gateway.pool.names()]


@router.get("/{name}", summary="A model with its card")
def get_model(name: str, access: MayUse) -> ModelWithCard:
    """One model, and what it learned from and how well it did."""
    try:
        version = version_in_use(name)
    except registry.ModelMissing as error:
        raise Refused("not-found", str(error)) from error
    return ModelWithCard(**Model.of(version).model_dump(), card=version.card.to_dict())
