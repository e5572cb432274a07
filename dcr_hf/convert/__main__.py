"""OpenAI-format CLIP weights (a `.pt` state dict, as DIVA and un2CLIP release them) -> a CLIPModel folder.

python -m dcr_hf.convert FILE.pt OUT [--base openai/clip-vit-large-patch14] [--activation gelu]
"""

from dcr_hf.convert.openai_format import convert
from dcr_hf.errors import AlreadyExistsError, OneLineParser, exit_on_user_error
from dcr_hf.files import check_writable, user_path


def main(arguments: list[str] | None = None) -> None:
    parser = OneLineParser(
        prog="python -m dcr_hf.convert", description="OpenAI-format CLIP weights -> a Hugging Face CLIPModel folder."
    )
    parser.add_argument("file", type=user_path, help="The .pt state dict to convert.")
    parser.add_argument("output_dir", type=user_path, help="The CLIPModel folder to write; new or empty.")
    parser.add_argument(
        "--base",
        default="openai/clip-vit-large-patch14",
        help="CLIP folder or hub id that gives the tokenizer, the activation, and the text side if `file` has none "
        "(default: %(default)s).",
    )
    parser.add_argument(
        "--activation",
        choices=("quick_gelu", "gelu"),
        help="Activation of the layers, which `file` does not store: quick_gelu for OpenAI's and MetaCLIP's models "
        "and all tuned from them (default: that of --base).",
    )
    options = parser.parse_args(arguments)
    with exit_on_user_error():
        if options.output_dir.is_file() or (options.output_dir.is_dir() and any(options.output_dir.iterdir())):
            raise AlreadyExistsError(f"{options.output_dir} is not empty. Give another folder, or remove it.")
        check_writable("output_dir", options.output_dir)
        model = convert(options.file, options.output_dir, options.base, options.activation)
    size = sum(weight.numel() for weight in model.parameters())
    print(
        f"Written: {options.output_dir}, {size / 1e6:.1f} M weights, {model.config.vision_config.image_size} pixels, "
        f"activation {model.config.vision_config.hidden_act}."
    )


if __name__ == "__main__":
    main()
