"""The life of a cohort as pure functions and small state machines, without messages, models or clocks.

Who is in which cohort, and who comes and goes (``forming``, ``labels``, ``similarity``, ``membership``,
``cohort_file``), how many cohorts there should be (``count``), whom a leader asks in a round (``sampling``, ``oort``),
when a cohort stops (``stopping``), and when and with which weights its model becomes a teacher (``quantile``). Sockets,
training and elections are the caller's.

Cohort-parallel federated learning: Dhasade, Kermarrec, Nguyen, Pires, de Vos: Harnessing Increased Client Participation
with Cohort-Parallel Federated Learning, EuroMLSys 2025.
"""

from node.cohorts import cohort_file
from node.cohorts.count import advised_count, gradient_noise_scale, predicted_rounds
from node.cohorts.forming import Cohorts, at_random, by_rendezvous, by_speed, round_time_s
from node.cohorts.labels import Histogram, noised, stratified, total_variation
from node.cohorts.membership import (
    dissolved,
    distance_costs,
    joined,
    near_costs,
    rendezvous_costs,
    similar_costs,
    smallest,
    stratified_costs,
    without,
)
from node.cohorts.oort import Oort, OortSection, Seen, statistical_utility
from node.cohorts.quantile import Quantile, teacher_weights
from node.cohorts.sampling import Speeds, by_capacity, generator, number_to_ask, uniform
from node.cohorts.similarity import best_start, by_latency, by_loss, completed, favourite, similar
from node.cohorts.stopping import Round, Stopping, StoppingSection

__all__ = [
    "Cohorts",
    "Histogram",
    "Oort",
    "OortSection",
    "Quantile",
    "Round",
    "Seen",
    "Speeds",
    "Stopping",
    "StoppingSection",
    "advised_count",
    "at_random",
    "best_start",
    "by_capacity",
    "by_latency",
    "by_loss",
    "by_rendezvous",
    "by_speed",
    "cohort_file",
    "completed",
    "dissolved",
    "distance_costs",
    "favourite",
    "generator",
    "gradient_noise_scale",
    "joined",
    "near_costs",
    "noised",
    "number_to_ask",
    "predicted_rounds",
    "rendezvous_costs",
    "round_time_s",
    "similar",
    "similar_costs",
    "smallest",
    "statistical_utility",
    "stratified",
    "stratified_costs",
    "teacher_weights",
    "total_variation",
    "uniform",
    "without",
]
