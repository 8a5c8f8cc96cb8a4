"""A task of somebody's own: how much of an image is labelled odd. The mean absolute error should be low."""

from torch import nn

from lookfar.tasks import Task, Words


class Regression(Task):
    metric = "mae"
    words = Words(score="mean absolute error", unit=" %")
    higher = False
    scale = 100.0

    def question(self, data):
        return f"Say how much of an image is {data.classes[1]}."

    def host(self, wanted, data):
        network = nn.Sequential()
        network.add_module("backbone", nn.Conv2d(data.in_chans, 8, 3, stride=2, padding=1))
        network.add_module("pool", nn.AdaptiveAvgPool2d(1))
        network.add_module("head", nn.Conv2d(8, 1, 1))
        network.place = "backbone"
        return network

    def error(self, output, targets):
        return output.flatten(1).mean(1) - (targets == 1).to(output).flatten(1).mean(1)

    def loss(self, output, targets, weights):
        error = self.error(output, targets)
        return error.square().sum(), error.new_tensor(len(error))

    def judge(self, output, targets):
        return {"error": self.error(output, targets).abs().double()}

    def score(self, facts, weights):
        return 100 * weights @ facts / weights.sum(1)

    def show(self, output, target):
        return f"{float((target == 1).double().mean()):.3f}", f"{float(output.mean()):.3f}"


class NoTask:
    pass


class Silent(Task):
    pass
