from lookfar.cli import main

main()
