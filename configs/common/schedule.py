"""Schedules of the learning rate for ``lr_multiplier``."""

from salience_detr.engine.schedules import cosine_schedule, flat_cosine_schedule, step_schedule
