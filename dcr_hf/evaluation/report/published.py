"""Published numbers to compare with ours, in percent; always marked as published."""

PAPER = "the DCR paper's own numbers (arXiv 2603.04803)"
CLIP_BENCHMARK = "CLIP_benchmark's published results"

MMVP_SET = "MMVP_VLM"
# MMVP-VLM, mean of the nine categories: method -> backbone -> percent.
_BACKBONES = ("OpenAI L 224", "OpenAI L 336", "MetaCLIP L", "MetaCLIP H", "SigLIP 224", "SigLIP 384")
_MMVP = {
    "original": (19.3, 20.0, 23.7, 25.2, 37.8, 37.0),
    "DIVA": (25.9, 25.2, 27.4, 31.9, 40.7, 38.5),
    "GenHancer": (31.9, 29.6, 31.9, 37.0, 42.2, 40.0),
    "un2CLIP": (32.6, 30.4, None, None, None, None),
    "DCR": (33.3, 31.1, 32.6, 37.8, 43.0, 42.2),
}
MMVP = {
    backbone: {method: row[index] for method, row in _MMVP.items() if row[index] is not None}
    for index, backbone in enumerate(_BACKBONES)
}

CLUSTERED_SETS = ("mnist", "cifar10", "imagenet1k", "caltech101", "dtd", "eurosat")

# Clustering, mean over the six sets: backbone -> method -> NMI, ACC, ARI.
CLUSTERING = {
    "OpenAI L 224": {
        "original": (71, 61, 49),
        "DIVA": (71, 60, 48),
        "GenHancer": (65, 55, 41),
        "un2CLIP": (70, 62, 48),
        "DCR": (76, 67, 54),
    },
    "SigLIP 224": {
        "original": (78, 70, 57),
        "DIVA": (77, 69, 57),
        "GenHancer": (74, 64, 52),
        "DCR": (83, 76, 65),
    },
}

# OpenAI L 224, acc1; and recall at 5.
ZEROSHOT_ACC1 = {
    "imagenet1k": 75.49,
    "cifar10": 95.69,
    "cifar100": 76.13,
    "mnist": 76.79,
    "eurosat": 62.67,
    "dtd": 55.11,
    "caltech101": 83.86,
}
RETRIEVAL_RECALL_AT_5 = {
    "flickr30k": {"text_to_image": 87.16, "image_to_text": 97.40},
    "mscoco_captions": {"text_to_image": 61.08, "image_to_text": 79.18},
}

# LLaVA-1.5 7B with each method's tower, by benchmark, dataset and metric of dcr_hf/mllm.
_LLAVA = {
    "original": (24.7, 17.6, 60.9, 58.7),
    "DIVA": (31.3, 22.3, 63.4, 60.2),
    "GenHancer": (30.7, 24.4, 63.6, 63.2),
    "un2CLIP": (31.3, None, 65.1, 61.2),
    "DCR": (31.3, 25.3, 65.5, 63.5),
}
_LLAVA_KEYS = (
    ("mmvp", "official", "pair_accuracy"),
    ("naturalbench", "all", "g_acc"),
    ("cv_bench", "COCO", "accuracy"),
    ("cv_bench", "3D", "accuracy"),
)
LLAVA = {
    method: {key: value for key, value in zip(_LLAVA_KEYS, row, strict=True) if value is not None}
    for method, row in _LLAVA.items()
}
