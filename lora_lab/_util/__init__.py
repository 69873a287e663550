"""Small tools that know nothing of LoRA: files, tables, formats, other libraries' private names."""
