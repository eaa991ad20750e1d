"""Placeholder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter

if TYPE_CHECKING:
    from qalign_fast.serve.service import Service


def make_router(service: Service) -> APIRouter:
    """The routes."""
    return APIRouter()
