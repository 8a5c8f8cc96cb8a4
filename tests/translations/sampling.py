"""Where to look: the grid and sampler of spatial transformers, the sensor of glimpses."""

from lookfar.ops import affine_sample, glimpse_sensor
from translations import Built, Case, translates


@translates("spatial_transformer op")
def sampler(case: Case) -> Built:
    size = case.args.get("out_size")
    return Built(lambda x, theta: affine_sample(x, theta, None if size is None else (size[0], size[1])))


@translates("glimpse sensor")
def sensor(case: Case) -> Built:
    a = case.args
    scales, factor = a.get("scales", 1), a.get("scale_factor", 2)
    return Built(lambda x, l: glimpse_sensor(x, l, kernel_size=a["patch"], scales=scales, scale_factor=factor))
