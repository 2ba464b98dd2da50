"""The encoders that V-JEPA is compared with (Tables 5 and 6; App. D.1).

`keras_vjepa.models` offers them to users.
"""

from keras_vjepa.models.families.dinov2 import DINOv2Backbone as DINOv2Backbone
from keras_vjepa.models.families.hiera import HieraBackbone as HieraBackbone
from keras_vjepa.models.families.ijepa import IJEPABackbone as IJEPABackbone
from keras_vjepa.models.families.mvd import MVDBackbone as MVDBackbone
from keras_vjepa.models.families.omnimae import OmniMAEBackbone as OmniMAEBackbone
from keras_vjepa.models.families.openclip import OpenCLIPBackbone as OpenCLIPBackbone
from keras_vjepa.models.families.videomae import VideoMAEBackbone as VideoMAEBackbone
from keras_vjepa.models.families.videomae import VideoMAEv2Backbone as VideoMAEv2Backbone
from keras_vjepa.models.families.vision_backbone import Facts as Facts
from keras_vjepa.models.families.vision_backbone import VisionBackbone as VisionBackbone

# A backbone of any of these families.
RivalBackbone = VisionBackbone | HieraBackbone
