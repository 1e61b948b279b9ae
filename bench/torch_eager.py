"""Images per second of EfficientNet-Lite0 in PyTorch as it is written (eager), also for the mirrored image.

bench/predict.py runs it with a Python that has torch and timm. The weights are random: they do not change the speed.
"""

import argparse
import json
import time

import timm
import torch


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--images", type=int, default=64)
    arguments.add_argument("--batch", type=int, default=8)
    arguments.add_argument("--side", type=int, default=224)
    arguments.add_argument("--once", action="store_true", help="without the mirrored image")
    chosen = arguments.parse_args()
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=2).eval()
    grey = torch.randn(chosen.batch, 1, chosen.side, chosen.side)

    def read() -> None:
        views = [grey] if chosen.once else [grey, grey.flip(-1)]
        torch.softmax(sum(network(view.expand(-1, 3, -1, -1)) for view in views), dim=1)

    with torch.inference_mode():
        read()
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(0, chosen.images, chosen.batch):
            read()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    count = -(-chosen.images // chosen.batch) * chosen.batch
    told = {"torch": torch.__version__, "images_per_second": count / wall, "milliseconds": 1000 * processor / count}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
