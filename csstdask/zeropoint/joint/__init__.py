"""Solve for the zero points of all exposures and detectors of a campaign at once."""

from csstdask.zeropoint.joint.identify import identify_stars
from csstdask.zeropoint.joint.solution import JointSettings, JointSolution, StarObservations
from csstdask.zeropoint.joint.solve import solve_joint

__all__ = ["JointSettings", "JointSolution", "StarObservations", "identify_stars", "solve_joint"]
