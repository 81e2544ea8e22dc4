"""Zero points of all units of a campaign: joint solution, memory, prior and posterior."""

from csstdask.zeropoint.campaign.calibrate import CampaignSettings, CampaignZeroPoints, calibrate_campaign
from csstdask.zeropoint.campaign.stars import CampaignStars

__all__ = ["CampaignSettings", "CampaignStars", "CampaignZeroPoints", "calibrate_campaign"]
