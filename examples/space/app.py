"""regard as a Hugging Face Space: this folder, as it is."""

from regard.app import build, settings

demo = build()

if __name__ == "__main__":
    demo.launch(server_name="0.0.0.0", **settings())
