"""Optional trackers: the numbers of a run's records, shown elsewhere too. Off by default, never needed."""

from selfcorrect.trackers.base import NAMES, Tracked, Tracker, make_trackers, package_of
from selfcorrect.trackers.tracking import Tracking

__all__ = ["NAMES", "Tracked", "Tracker", "Tracking", "make_trackers", "package_of"]
