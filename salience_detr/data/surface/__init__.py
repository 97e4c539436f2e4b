"""The generated data set "surface defects"."""

from salience_detr.data.surface.dataset import (
    SURFACE_DEFECT_CLASSES,
    SurfaceSample,
    generate_surface_defects,
    register_surface_defects,
    render_surface,
)

__all__ = [
    "SURFACE_DEFECT_CLASSES",
    "SurfaceSample",
    "generate_surface_defects",
    "register_surface_defects",
    "render_surface",
]
