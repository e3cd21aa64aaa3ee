"""Takes the place of transformers' module of this name where torchvision is missing; see `compat.cpu`.

Found through the path of the package transformers.models.pixtral, so it is imported under that package's name.
"""

from transformers.models.pixtral.image_processing_pil_pixtral import _num_image_tokens, get_resize_output_image_size

__all__ = ["_num_image_tokens", "get_resize_output_image_size"]
